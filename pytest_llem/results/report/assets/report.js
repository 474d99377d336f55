"use strict";
(() => {
  const data = JSON.parse(document.getElementById("llem-data").textContent);
  const column = (cells) => Array.isArray(cells) ? cells : cells.texts.map((place) => place < 0 ? null : data.texts[place]);
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  const PAGE = 200;

  const keys = column(data.keys);
  const tables = [...document.querySelectorAll("table.results")].map((table) => {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const more = make("button", { type: "button", id: "more", hidden: true });
    const entry = { table, body, rows, order: rows, page: PAGE, more };
    more.addEventListener("click", () => { entry.page = Infinity; paint(entry); });
    table.parentElement.after(more);
    return entry;
  });
  const rows = tables.flatMap((entry) => entry.rows);
  const keyOf = new Map(rows.map((row, place) => [row, keys[place]]));
  let fitting = new Set(rows);
  let visible = new Set(keys);

  const paint = (entry) => {
    const found = entry.order.filter((row) => fitting.has(row));
    entry.body.replaceChildren(...found.slice(0, entry.page));
    entry.more.hidden = found.length <= entry.page;
    entry.more.textContent = `Show all ${found.length} rows`;
  };

  const sortable = (entry) => {
    const heads = [...entry.table.tHead.rows[0].cells];
    for (const head of heads) {
      head.replaceChildren(make("button", { type: "button" }, ...head.childNodes));
      head.firstChild.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => {
          const text = row.cells[head.cellIndex].textContent.trim();
          const number = head.classList.contains("n") ? parseFloat(text) : Number(text);
          return text === "\u2013" ? null : isNaN(number) ? text : number;
        };
        const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
          : String(a).localeCompare(String(b), undefined, { numeric: true });
        const keyed = entry.rows.map((row) => [value(row), row]);
        keyed.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : down ? compare(b, a) : compare(a, b)));
        entry.order = keyed.map(([, row]) => row);
        paint(entry);
      });
    }
  };

  const search = make("input", { id: "filter", type: "search", autocomplete: "off" });
  const shown = make("output", { id: "shown" });
  shown.setAttribute("aria-live", "polite");
  const cellOf = new Map();  // by title of the axis: the row's text on it
  const selects = [];
  for (const title of new Set(data.axes)) {
    const texts = new Map();
    for (const entry of tables) {
      const place = [...entry.table.tHead.rows[0].cells].findIndex((head) => head.textContent === title);
      if (place >= 0) for (const row of entry.rows) texts.set(row, row.cells[place].textContent);
    }
    const values = [...new Set(texts.values())];
    if (values.length < 2 || values.length > 40 || selects.length >= 6) continue;
    const select = make("select", {}, new Option("any", ""), ...values.map((value) => new Option(value, value)));
    select.dataset.axis = title;
    cellOf.set(select, texts);
    selects.push(select);
  }

  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    fitting = new Set(rows.filter((row) => {
      if (!selects.every((select) => !select.value || cellOf.get(select).get(row) === select.value)) return false;
      const text = words.length ? `${row.textContent} ${keyOf.get(row)}`.toLowerCase() : "";
      return words.every((word) => text.includes(word));
    }));
    visible = new Set([...fitting].map((row) => keyOf.get(row)));
    tables.forEach(paint);
    shown.textContent = `${fitting.size} of ${rows.length} experiments`;
    for (const [chart, view] of live) {
      const table = narrowed(chart);
      view.data("table", table).height(tall(chart, table)).runAsync();
    }
    fillCycles();
  };
  let waiting = 0;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 120); });
  for (const select of selects) select.addEventListener("change", apply);

  const live = new Map();
  const shared = Object.fromEntries(Object.entries(data.shared).map(([name, cells]) => [name, column(cells)]));
  const rowsOf = (chart) => {
    if (!chart.rows) {
      const columns = Object.entries(chart.columns).map(([name, cells]) => [name, column(cells)]);
      chart.rows = chart.keys.map((which, place) => ({
        key: keys[which],
        ...Object.fromEntries(chart.shared.map((name) => [name, shared[name][which]])),
        ...Object.fromEntries(columns.map(([name, cells]) => [name, cells[place]])),
      }));
    }
    return chart.rows;
  };
  const narrowed = (chart) => {
    const found = rowsOf(chart).filter((row) => visible.has(row.key));
    if (!chart.step) return found;
    const first = new Set();
    for (const row of found) if (first.size < data.style.bands) first.add(row.key);
    return found.filter((row) => first.has(row.key));
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const config = () => JSON.parse(JSON.stringify(data.style.config).replaceAll(data.style.ink, colour("--text")));
  const tall = (chart, rows) => chart.step
    ? Math.max(1, new Set(rows.map((row) => row.label)).size) * chart.step : chart.spec.height;
  const beside = (spec) => spec.layer && spec.layer.some((layer) => layer.name === "aside");
  const fitted = (element, spec) => !beside(spec) || element.clientWidth > 560 ? { ...spec, width: "container" }
    : { ...spec, width: Math.max(480, element.clientWidth), layer: spec.layer.filter((layer) => layer.name !== "aside") };
  const embed = (element, spec, datasets, description) =>
    vegaEmbed(element, { ...fitted(element, spec), description, autosize: { type: "fit-x", contains: "padding" },
      config: config(), background: "transparent", data: { name: "table" }, datasets },
    { mode: "vega-lite", actions: false, renderer: "svg" }).then((result) => result.view);

  const draw = async (element) => {
    const chart = data.charts.find((entry) => entry.id === element.dataset.chart);
    const table = narrowed(chart);
    live.set(chart, await embed(element, { ...chart.spec, height: tall(chart, table) }, { table }, chart.description));
  };
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "300px" });

  const power = document.querySelector("#power .chart");
  const cycles = make("select", { id: "cycle" });
  const runs = new Set(Object.keys(data.traces).map((name) => name.split("/", 2).join("/")));
  const called = (name) => runs.size > 1 ? name : name.split("/").slice(2).join("/");
  const drawPower = () => {
    const trace = data.traces[cycles.value];
    if (!trace) { power.replaceChildren(); return; }
    const table = trace.points.map(([t, w, device]) => ({ t, w, device }));
    const windows = trace.windows.map(([name, start, end]) => ({ name, start, end }));
    document.getElementById("power-of").textContent = called(cycles.value);
    embed(power, data.power, { table, windows }, `Power over time of ${cycles.value}`);
  };
  function fillCycles() {
    if (!power || !window.vegaEmbed) return;
    const keep = cycles.value;
    const names = Object.keys(data.traces).filter((name) => visible.has(name.slice(0, name.lastIndexOf("/"))));
    cycles.replaceChildren(...names.map((name) => new Option(called(name), name)));
    if (names.includes(keep)) cycles.value = keep;
    if (cycles.value !== keep) drawPower();
  }
  cycles.addEventListener("change", drawPower);

  if (rows.length > 1) {
    const labelled = selects.map((select) => make("label", {}, select.dataset.axis, select));
    const controls = make("div", { className: "controls" }, make("label", {}, "Words", search), ...labelled);
    const filter = make("details", { open: innerWidth > 720 }, make("summary", {}, "Filter: ", shown), controls);
    document.querySelector("#experiments h2").after(filter);
    shown.textContent = `${rows.length} of ${rows.length} experiments`;
    tables.forEach(sortable);
  }
  tables.forEach(paint);
  const charts = [...document.querySelectorAll("#race .chart, #charts .chart")];
  const redraw = () => { for (const chart of charts) seen.observe(chart); if (power && cycles.value) drawPower(); };
  if (window.vegaEmbed) {
    if (power) power.closest("figure").before(make("div", { className: "controls" }, make("label", {}, "Cycle", cycles)));
    fillCycles();
    redraw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }
})();
