"use strict";
(() => {
  const data = JSON.parse(document.getElementById("llem-data").textContent);
  const table = document.getElementById("experiments");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const shown = document.getElementById("shown");
  const search = document.getElementById("filter");
  const selects = [...document.querySelectorAll("select[data-axis]")];
  const LIMIT = 40;
  const more = document.getElementById("more");
  const PAGE = 200;
  let visible = new Set(rows.map((row) => row.dataset.key));
  let order = rows;
  let page = PAGE;
  const paint = () => {
    const fitting = order.filter((row) => visible.has(row.dataset.key));
    body.replaceChildren(...fitting.slice(0, page));
    more.hidden = fitting.length <= page;
    more.textContent = `Show all ${fitting.length} rows`;
  };
  more.addEventListener("click", () => { page = Infinity; paint(); });
  const live = new Map();

  const cell = (row, column) => {
    const value = row.cells[column].dataset.v;
    return value === undefined || value === "" ? null : isNaN(value) ? value : Number(value);
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });

  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const head = button.parentElement;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const column = head.cellIndex;
    const keyed = rows.map((row) => [cell(row, column), row]);
    keyed.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : down ? compare(b, a) : compare(a, b)));
    order = keyed.map(([, row]) => row);
    paint();
  });

  const settings = new Map(data.experiments.map((entry) => [entry.key, entry.axes]));
  for (const chart of data.charts) {
    chart.rows = chart.rows.map(([place, row]) => {
      const { axes, ...identity } = data.experiments[place];
      return { ...identity, ...row };
    });
  }
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    visible = new Set();
    for (const row of rows) {
      const text = row.dataset.text;
      const axes = settings.get(row.dataset.key);
      const fits = words.every((word) => text.includes(word)) &&
        selects.every((select) => !select.value || String(axes[select.dataset.axis]) === select.value);
      if (fits) visible.add(row.dataset.key);
    }
    paint();
    shown.textContent = `${visible.size} of ${rows.length} experiments`;
    for (const [chart, view] of live) {
      const table = narrowed(chart);
      view.data("table", table).height(tall(chart, table)).runAsync();
    }
    fillCycles();
  };
  let waiting = 0;
  const later = () => { clearTimeout(waiting); waiting = setTimeout(apply, 120); };
  search.addEventListener("input", later);
  for (const select of selects) select.addEventListener("change", apply);

  const narrowed = (chart) => {
    const found = chart.rows.filter((row) => visible.has(row.key));
    if (!chart.banded) return found;
    const keys = new Set();
    for (const row of found) if (keys.size < LIMIT) keys.add(row.key);
    return found.filter((row) => keys.has(row.key));
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const config = () => ({
    background: "transparent", view: { stroke: colour("--line") },
    axis: { labelColor: colour("--text"), titleColor: colour("--text"), gridColor: colour("--line"),
      domainColor: colour("--line"), tickColor: colour("--line") },
    legend: { labelColor: colour("--text"), titleColor: colour("--text"), orient: "top",
      symbolBaseFillColor: colour("--muted"), symbolBaseStrokeColor: colour("--muted") },
    font: "system-ui, sans-serif", mark: { color: colour("--accent") },
  });
  const tall = (chart, rows) => chart.banded
    ? Math.max(1, new Set(rows.map((row) => row.label)).size) * chart.spec.height.step : chart.spec.height;
  const embed = (element, spec, datasets, description) =>
    vegaEmbed(element, { ...spec, width: "container", description, autosize: { type: "fit-x", contains: "padding" },
      config: config(), data: { name: "table" }, datasets },
    { mode: "vega-lite", actions: false, renderer: "svg" }).then((result) => result.view);

  const draw = async (element) => {
    const chart = data.charts.find((entry) => entry.id === element.dataset.chart);
    const table = narrowed(chart);
    live.set(chart, await embed(element, { ...chart.spec, height: tall(chart, table) }, { table }, chart.description));
  };
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "300px" });

  const cycles = document.getElementById("cycle");
  const power = document.getElementById("power-chart");
  const drawPower = () => {
    const trace = data.traces[cycles.value];
    if (!trace) { power.replaceChildren(); return; }
    const table = trace.points.map(([t, w, device]) => ({ t, w, device }));
    const windows = trace.windows.map(([name, start, end]) => ({ name, start, end }));
    embed(power, data.power, { table, windows }, `Power over time of ${cycles.value}`);
  };
  function fillCycles() {
    if (!cycles) return;
    const keep = cycles.value;
    const names = Object.keys(data.traces).filter((name) => visible.has(name.slice(0, name.lastIndexOf("/"))));
    cycles.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(keep)) cycles.value = keep;
    if (cycles.value !== keep || !power.hasChildNodes()) if (window.vegaEmbed) drawPower();
  }
  if (cycles) cycles.addEventListener("change", drawPower);

  const charts = [...document.querySelectorAll(".chart[data-chart]")];
  const redraw = () => { for (const chart of charts) seen.observe(chart); if (cycles && power.hasChildNodes()) drawPower(); };
  if (window.vegaEmbed) {
    redraw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    addEventListener("beforeprint", () => charts.forEach(draw));
  }
  paint();
  fillCycles();
})();
