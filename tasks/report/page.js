/* The pages' own script: theme, sortable tables, the values of a plot at the pointer. Without it a page shows all the
   same data. It fetches nothing, and writes data as text alone (textContent), never as markup. */
(() => {
  "use strict";
  const root = document.documentElement;

  /* Theme: the system's until one is chosen; the choice stays where the browser lets a page keep one. */
  const THEMES = ["system", "light", "dark"];
  const kept = {
    get() { try { return localStorage.getItem("longloom-theme"); } catch { return null; } },
    set(theme) { try { localStorage.setItem("longloom-theme", theme); } catch { /* a private window */ } },
  };
  let theme = THEMES.includes(kept.get()) ? kept.get() : "system";
  const wear = () => {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
  };
  wear(); // before anything is painted: this script stands in the head

  function switchTheme() {
    const button = element("button", "theme", `Theme: ${theme}`);
    button.type = "button";
    button.addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      kept.set(theme);
      wear();
      button.textContent = `Theme: ${theme}`;
    });
    document.querySelector("main").prepend(button);
  }

  function element(name, className, text = "") {
    const made = document.createElement(name);
    made.className = className;
    made.textContent = text;
    return made;
  }

  /* Tables: a click on a head sorts the rows below it, within their groups; a third click restores the order. */
  const FACTORS = {
    "": 1, "%": 1, B: 1, kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, k: 1e3, M: 1e6, G: 1e9, T: 1e12,
    ms: 1e-3, s: 1, min: 60, h: 3600,
  };
  const AMOUNT = /^[<>≥≤]?\s*([+−-]?)([\d,]*\.?\d+(?:e[+-]?\d+)?)\s*(%|[kMGT]?B|[kMGT]|ms|s|min|h)?(?:\s+(\d+)\s*(s|min))?(?:\s+to\s.*)?$/;
  const collator = new Intl.Collator("en", { numeric: true });

  /* What a cell is sorted by: its number in the base unit, else its text; null where it holds nothing. */
  function valueOf(cell) {
    const copy = cell.cloneNode(true);
    copy.querySelectorAll("small").forEach((note) => note.remove());
    const text = copy.textContent.trim();
    if (text === "" || text === "–") return null;
    const found = AMOUNT.exec(text);
    if (!found) return text;
    const size = Number(found[2].replaceAll(",", "")) * FACTORS[found[3] ?? ""];
    const rest = found[4] ? Number(found[4]) * FACTORS[found[5]] : 0;
    return (found[1] === "−" || found[1] === "-" ? -1 : 1) * (size + rest);
  }

  function makeSortable(table) {
    const heads = [...(table.tHead?.rows[table.tHead.rows.length - 1]?.cells ?? [])];
    const groups = [...table.tBodies].map((body) => {
      const rows = [...body.rows];
      const stays = (row) => row.matches(".suite, .mean, .total");
      const first = rows.findIndex((row) => !stays(row));
      const moving = rows.filter((row) => !stays(row));
      return { body, moving, after: rows.slice(Math.max(first, 0)).filter(stays) };
    });
    if (!groups.some((group) => group.moving.length > 1)) return;
    if (groups.some((group) => group.moving.some((row) => row.cells.length !== heads.length))) return;
    let sorted = { column: -1, way: "" };
    heads.forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = element("button", "sort");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const values = new Map(groups.flatMap((group) => group.moving.map((row) => [row, valueOf(row.cells[column])])));
        const numeric = [...values.values()].every((value) => value === null || typeof value === "number");
        const ways = numeric ? ["descending", "ascending", ""] : ["ascending", "descending", ""];
        const way = ways[sorted.column === column ? (ways.indexOf(sorted.way) + 1) % 3 : 0];
        sorted = { column, way };
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (way) head.setAttribute("aria-sort", way);
        table.classList.toggle("sorted", way !== "");
        const sign = way === "descending" ? -1 : 1;
        const compare = (a, b) => {
          const [one, two] = [values.get(a), values.get(b)];
          if (one === null || two === null) return (one === null) - (two === null); // nothing goes last, either way
          return sign * (numeric ? one - two : collator.compare(String(one), String(two)));
        };
        for (const { body, moving, after } of groups) {
          body.append(...(way ? [...moving].sort(compare) : moving), ...after);
        }
      });
    });
  }

  /* Plots: the value nearest to the pointer, or by the arrow keys once a plot has the focus. */
  const NEAR = 30; // CSS pixels
  const tip = element("div", "tip");
  tip.setAttribute("role", "status");
  let ring = null;

  function hide() {
    tip.classList.remove("shown");
    ring?.remove();
    ring = null;
  }

  function tell(plot, [x, y, text]) {
    ring?.remove();
    ring = document.createElementNS(plot.namespaceURI, "circle");
    ring.setAttribute("class", "ring");
    for (const [name, value] of [["cx", x], ["cy", y], ["r", 6]]) ring.setAttribute(name, value);
    plot.append(ring);
    if (tip.textContent !== text) tip.textContent = text;
    tip.classList.add("shown");
    const at = ring.getBoundingClientRect();
    const left = at.left + at.width / 2 - tip.offsetWidth / 2;
    const above = at.top - tip.offsetHeight - 6;
    tip.style.left = `${window.scrollX + Math.min(Math.max(4, left), root.clientWidth - tip.offsetWidth - 4)}px`;
    tip.style.top = `${window.scrollY + (above > 4 ? above : at.bottom + 6)}px`;
  }

  /* A point is [x, y, text] or, with an extent, [x, y, text, width, height]: a bar, or a cell of a grid. */
  function distance([x, y, , width = 0, height = 0], left, top) {
    return Math.hypot(Math.max(0, Math.abs(left - x) - width / 2), Math.max(0, Math.abs(top - y) - height / 2));
  }

  function makeTelling(plot) {
    const points = JSON.parse(plot.dataset.points);
    let place = -1;
    plot.setAttribute("tabindex", "0");
    plot.setAttribute("role", "application");
    plot.setAttribute("aria-roledescription", "plot; the arrow keys tell its values");
    const nearest = (event) => {
      const box = plot.getBoundingClientRect();
      const scale = plot.viewBox.baseVal.width / box.width;
      const [left, top] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
      let best = NEAR * scale;
      let found = -1;
      points.forEach((point, number) => {
        const away = distance(point, left, top);
        if (away < best) [best, found] = [away, number];
      });
      if (found < 0) hide();
      else if (found !== place || !ring) tell(plot, points[found]);
      place = found < 0 ? place : found;
    };
    plot.addEventListener("pointermove", nearest);
    plot.addEventListener("pointerdown", nearest);
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const last = points.length - 1;
      const steps = { ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1 };
      const target = { ...steps, Home: 0, End: last }[event.key];
      if (event.key === "Escape") hide();
      if (target === undefined) return;
      event.preventDefault();
      place = Math.min(Math.max(target, 0), last);
      tell(plot, points[place]);
    });
  }

  /* A link into closed details opens them; links to folders only where the page lies in its store. */
  function reveal() {
    let found = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!found) return;
    const target = found;
    for (; found; found = found.parentElement) if (found.tagName === "DETAILS") found.open = true;
    target.scrollIntoView();
  }

  function linkFolders() {
    if (!/\/artifacts\/report\/[0-9a-f]+\/index\.html$/.test(location.pathname)) return;
    for (const place of document.querySelectorAll("code[data-place]")) {
      const link = element("a", "", place.textContent);
      link.href = `../../../${place.dataset.place}/`;
      place.replaceChildren(link);
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    switchTheme();
    document.querySelectorAll("table.booked").forEach(makeSortable);
    document.querySelectorAll("svg[data-points]").forEach(makeTelling);
    document.body.append(tip);
    linkFolders();
    reveal();
    window.addEventListener("hashchange", reveal);
  });
})();
