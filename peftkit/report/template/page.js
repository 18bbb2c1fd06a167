
(() => {
  "use strict";
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  root.classList.add("scripted");

  /* Switches: each says what it switches, and whoever cares listens. */
  const onSwitch = (name, act) => {
    for (const input of all(`[data-switch="${name}"] input`)) {
      input.addEventListener("change", () => act(input.value));
      if (input.checked) act(input.value);
    }
  };

  onSwitch("theme", (value) => {
    if (value === "auto") delete root.dataset.theme;
    else root.dataset.theme = value;
  });

  onSwitch("view", (value) => {
    document.querySelector("[data-view]").dataset.view = value;
    for (const input of all('[data-switch="scale"]')) input.hidden = value === "table";
  });

  onSwitch("scale", (value) => {
    for (const chart of all(".chart")) {
      const plots = all(".plot", chart);
      if (!plots.some((plot) => plot.dataset.scale === value)) continue;
      for (const plot of plots) plot.hidden = plot.dataset.scale !== value;
    }
  });

  /* Charts: a data cursor that follows the pointer and the arrow keys. */
  const make = (tag, parent, className) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    parent.append(element);
    return element;
  };

  const nearest = (places, place) => {
    let low = 0;
    let high = places.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (places[middle] < place) low = middle;
      else high = middle;
    }
    return place - places[low] < places[high] - place ? low : high;
  };

  const capital = (words) => words[0].toUpperCase() + words.slice(1);
  const percent = (share) => `${100 * share}%`;

  const equip = (plot, data) => {
    const reading = make("div", plot, "reading");
    reading.hidden = true;
    let at = 0;

    const named = (what) => data.named ? data.named[at] : `${what} ${data.steps[at].toLocaleString("en-US")}`;
    const said = () => data.series.filter((line) => line.words[at] !== null);

    const show = (index) => {
      at = Math.max(0, Math.min(data.steps.length - 1, index));
      const place = data.places[at];
      reading.replaceChildren();
      make("div", reading, "stem").style.left = percent(place);
      for (const line of said()) {
        const dot = make("div", reading, "dot");
        dot.style.left = percent(place);
        dot.style.top = percent(1 - line.heights[plot.dataset.scale][at]);
      }
      const tip = make("div", reading, "tip");
      make("b", tip).textContent = named(capital(data.unit));
      for (const line of said()) {
        const row = make("span", tip);
        make("i", row).textContent = line.name;
        make("span", row).textContent = line.words[at];
      }
      tip.style.left = percent(place);
      tip.style.transform = `translateX(${-100 * place}%)`;
      reading.hidden = false;
      plot.setAttribute("aria-valuenow", data.steps[at]);
      plot.setAttribute(
        "aria-valuetext",
        [named(data.unit), ...said().map((line) => `${line.name} ${line.words[at]}`)].join(", "),
      );
    };
    const hide = () => { reading.hidden = true; };

    plot.tabIndex = 0;
    plot.setAttribute("role", "slider");
    plot.setAttribute("aria-label", `${data.title}: read values`);
    plot.setAttribute("aria-valuemin", data.steps[0]);
    plot.setAttribute("aria-valuemax", data.steps.at(-1));
    plot.setAttribute("aria-valuenow", data.steps[0]);
    plot.setAttribute("aria-valuetext", `no ${data.unit} chosen`);

    const follow = (event) => {
      const box = plot.getBoundingClientRect();
      show(nearest(data.places, (event.clientX - box.left) / box.width));
    };
    plot.addEventListener("pointermove", follow);
    plot.addEventListener("pointerdown", follow);
    plot.addEventListener("pointerleave", () => {
      if (document.activeElement !== plot) hide();
    });
    plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(at); });
    plot.addEventListener("blur", hide);
    const page = Math.max(1, Math.round(data.steps.length / 10));
    const moves = {
      ArrowRight: () => at + 1, ArrowUp: () => at + 1, ArrowLeft: () => at - 1, ArrowDown: () => at - 1,
      PageUp: () => at + page, PageDown: () => at - page, Home: () => 0, End: () => data.steps.length - 1,
    };
    plot.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      show(reading.hidden && event.key.startsWith("Arrow") ? at : moves[event.key]());
    });
  };

  for (const chart of all(".chart")) {
    const data = JSON.parse(chart.querySelector(".cursor-data").textContent);
    for (const plot of all(".plot", chart)) equip(plot, data);
  }

  /* Samples: a filter, and the first few until all are asked for. */
  const samples = all(".sample");
  const FIRST = 6;
  let judged = "all";
  let unfolded = false;
  const more = document.querySelector(".more");
  const sift = () => {
    const matching = samples.filter((sample) => judged === "all" || sample.dataset.judged === judged);
    const visible = new Set(unfolded ? matching : matching.slice(0, FIRST));
    for (const sample of samples) sample.hidden = !visible.has(sample);
    for (const line of all(".shown")) line.textContent = `${visible.size} of ${samples.length} shown`;
    more.hidden = visible.size === matching.length;
    more.firstElementChild.textContent = `Show all ${matching.length}`;
  };
  if (samples.length) {
    more.firstElementChild.addEventListener("click", () => {
      const next = samples.find((sample) => sample.hidden && (judged === "all" || sample.dataset.judged === judged));
      unfolded = true;
      sift();
      next.tabIndex = -1;
      next.focus({ preventScroll: true });
    });
    onSwitch("judged", (value) => { judged = value; sift(); });
    sift();
  }

  /* Tabs: arrow keys move, as everywhere; an address with a panel's name opens it. */
  const tabs = all('[role="tab"]');
  const panelOf = (tab) => document.getElementById(tab.getAttribute("aria-controls"));
  const open = (tab) => {
    for (const other of tabs) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      panelOf(other).hidden = !chosen;
    }
  };
  tabs.forEach((tab, at) => {
    panelOf(tab).setAttribute("role", "tabpanel");
    panelOf(tab).tabIndex = 0;
    tab.addEventListener("click", () => open(tab));
    tab.addEventListener("keydown", (event) => {
      const to = {
        ArrowRight: (at + 1) % tabs.length, ArrowLeft: (at + tabs.length - 1) % tabs.length,
        Home: 0, End: tabs.length - 1,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      open(tabs[to]);
      tabs[to].focus();
    });
  });
  const openNamed = () => {
    const tab = tabs.find((one) => `#${one.getAttribute("aria-controls")}` === location.hash);
    if (tab) open(tab);
  };
  if (tabs.length) open(tabs[0]);
  openNamed();
  addEventListener("hashchange", openNamed);

  /* Paper shows everything; the style sees to the rest, but cannot open what is folded. */
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all("details:not([open])");
    for (const item of folded) item.open = true;
  });
  addEventListener("afterprint", () => {
    for (const item of folded) item.open = false;
  });
})();
