"use strict";
(() => {
  const data = JSON.parse(document.getElementById("llem-data").textContent);
  const WIDE = 1000, HIGH = 500, NEAR = 150, MOST_DOTS = 100, LABELS = 3, MARGIN = 0.05, DAY = 86400;
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  const sums = (steps) => { let sum = 0; return steps.map((step) => (sum += step)); };
  const { runs, texts } = data;
  const lists = data.lists.map(sums);
  const dirty = new Set(runs.dirty);
  const at = sums(runs.at);
  const ofStudy = new Map();
  const number = runs.study.map((study, run) => {
    if (!ofStudy.has(study)) ofStudy.set(study, []);
    return ofStudy.get(study).push(run) - 1;
  });

  const panels = [...document.querySelectorAll(".panel")].map((element) => ({
    element, plot: element.querySelector(".plot"), packed: data.panels[element.id],
    words: `${element.querySelector("h3").textContent}`.toLowerCase(), drawn: element.hidden ? "" : "runs",
  }));
  if (!panels.length) return;
  const metrics = [...document.querySelectorAll("p.metric")];
  const unpack = (panel) => {
    if (panel.entries) return;
    const { step, scale, segments } = panel.packed;
    panel.segments = segments.map(({ number, runs, values, low, high, starts, failed }) => {
      const failures = new Set(failed);
      const whole = sums(values);
      const entries = lists[runs].map((run, place) => {
        const value = whole[place] * step, end = high[place] < 0 ? null : (whole[place] + high[place]) * step;
        const other = end === null ? null : low === null ? value * value / end
          : low[place] < 0 ? null : (whole[place] - low[place]) * step;
        return { run, value, low: other, high: end, segment: number, failed: failures.has(place) };
      });
      return { number, entries, starts };
    });
    panel.scale = scale;
    panel.entries = panel.segments.flatMap((segment) => segment.entries).sort((a, b) => a.run - b.run);
    panel.study = ofStudy.get(runs.study[panel.entries[0].run]);
  };

  const select = (...options) => make("select", {}, ...options.map(([value, text]) => new Option(text, value)));
  const metric = select(...metrics.map((each) => [each.dataset.metric, each.querySelector("b").textContent]));
  const studies = [...new Set(panels.map((panel) => panel.element.dataset.study))];
  const study = select(["", "any"], ...studies.map((name) => [name, name]));
  const words = make("input", { id: "filter", type: "search", autocomplete: "off" });
  const along = select(["runs", "runs"], ["time", "time"]);
  const scales = select(["own", "own"], ["shared", "shared"]);
  const count = make("output", { id: "shown" });
  count.setAttribute("aria-live", "polite");

  const xOf = (panel) => {
    const { study } = panel;
    if (along.value === "runs") return (run) => study.length > 1 ? WIDE * number[run] / (study.length - 1) : WIDE / 2;
    const first = at[study[0]], span = at[study[study.length - 1]] - first;
    return (run) => span > 0 ? WIDE * (at[run] - first) / span : WIDE / 2;
  };
  const round = (value) => Math.round(value * 10) / 10;
  const line = (points) => points.map(([x, y], place) => `${place ? "L" : "M"}${round(x)} ${round(y)}`).join("");
  const ticksOf = ([low, high]) => {
    const size = 10 ** Math.floor(Math.log10(high - low));
    const step = [0.2, 0.5, 1, 2].map((each) => each * size).find((each) => (high - low) / each < 5.5);
    const ticks = [];
    for (let each = Math.ceil((low + MARGIN * (high - low)) / step); each <= Math.floor(high / step); each++) ticks.push(each * step);
    return ticks;
  };
  const text4 = (value) => String(Number(value.toPrecision(4)));
  const pathsOf = (panel, x, y) => {
    const paths = [], rings = [];
    for (const { number, entries, starts } of panel.segments) {
      const points = entries.map((entry) => [x(entry.run), y(entry.value)]);
      let band = "", part = [];
      const close = () => {
        if (part.length) band += `${line([...part.map((e) => [x(e.run), y(e.high)]),
          ...part.reverse().map((e) => [x(e.run), y(e.low)])])}z`;
        part = [];
      };
      for (const entry of entries) entry.low === null || entry.high === null ? close() : part.push(entry);
      close();
      const levels = [0, ...starts].map((start, place) => {
        const end = starts[place] ?? entries.length;
        const mean = entries.slice(start, end).reduce((sum, entry) => sum + entry.value, 0) / (end - start);
        const from = x(entries[start].run);
        return `M${round(from)} ${round(y(mean))}H${round(Math.max(x(entries[end - 1].run), from + 1))}`;
      });
      const dots = points.length <= MOST_DOTS ? points : [];
      entries.forEach((entry, place) => { if (entry.failed) rings.push(points[place]); });
      paths.push(["band", number, band], ["line", number, line(points)], ["dots", number, dotted(dots)],
        ["level", number, levels.join("")]);
    }
    return [...paths, ["ring", 0, dotted(rings)], ["hole", 0, dotted(rings)]].filter(([, , path]) => path);
  };
  const dotted = (points) => points.map(([x, y]) => `M${round(x)} ${round(y)}h0`).join("");

  const yOf = ([low, high]) => (value) => HIGH * Math.min(1, Math.max(0, (high - value) / (high - low)));
  const draw = (panel, scale) => {
    const x = xOf(panel), y = yOf(scale), { plot } = panel;
    plot.querySelector("svg").replaceChildren(...pathsOf(panel, x, y).map(([kind, number, d]) => {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", number ? `${kind} k${(number - 1) % 8}` : kind);
      path.setAttribute("d", d);
      return path;
    }));
    plot.querySelector(".ticks").replaceChildren(...ticksOf(scale).map((tick) => {
      const mark = make("span", {}, make("i", {}, text4(tick)));
      mark.style.top = `${100 * y(tick) / HIGH}%`;
      return mark;
    }));
    const { study } = panel, last = study.length - 1;
    const places = [...new Set(Array.from({ length: LABELS }, (_, place) => Math.round(place * last / (LABELS - 1))))];
    const ends = [at[study[0]], at[study[last]]];
    const times = along.value === "runs" ? places.map((place) => at[study[place]])
      : places.map((_, place) => places.length > 1 ? ends[0] + place * (ends[1] - ends[0]) / (places.length - 1) : ends[0]);
    const long = ends[1] - ends[0] >= 3 * DAY;
    plot.querySelector(".dates").replaceChildren(...times.map((time) => make("span", {},
      long ? when(time).slice(0, 10) : when(time).slice(5))));
    let before = -WIDE, row = 0;
    const marks = [...plot.querySelectorAll(".mark")].sort((a, b) => a.dataset.run - b.dataset.run);
    for (const mark of marks) {
      const place = x(study[mark.dataset.run]);
      mark.style.setProperty("--x", `${place / WIDE * 100}%`);
      if (mark.classList.contains("segment")) continue;
      row = place - before < NEAR ? 1 - row : 0;
      before = place;
      mark.classList.toggle("row1", row === 1);
    }
    panel.shown = scale;
    if (panel.cursor) choose(panel, panel.chosen);
  };

  const when = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");
  const symbolOf = (panel) => panel.plot.dataset.unit;
  const withUnit = (panel, value) => `${text4(value)}${symbolOf(panel)}`;
  const spanOf = (entry) => entry.low === null || entry.high === null ? "no interval"
    : `${text4(entry.low)} to ${text4(entry.high)}`;
  const commitOf = ({ run }) => {
    const hash = runs.commit[run], pages = texts[runs.pages[run]];
    if (!hash) return "no commit";
    const known = pages && /^[0-9a-f]{7,64}$/.test(hash);
    const short = hash.slice(0, 10) + (dirty.has(run) ? " with changes on top" : "");
    return known ? make("a", { href: pages + hash }, short) : short;
  };
  const hostOf = ({ run }) => texts[runs.host[run]] ?? "unknown host";
  const told = (panel, entry) => [
    make("b", {}, withUnit(panel, entry.value)), ` (${spanOf(entry)}) `,
    ...(entry.failed ? [make("span", { className: "bad" }, "✗ gate failed ")] : []),
    `on ${when(at[entry.run])} UTC, `, commitOf(entry), `, run ${runs.id[entry.run]}, ${hostOf(entry)}`,
  ];

  const choose = (panel, place, moved = true) => {
    const entry = panel.entries[place];
    panel.chosen = place;
    panel.at.replaceChildren(...told(panel, entry));
    panel.plot.setAttribute("aria-valuenow", place + 1);
    panel.plot.setAttribute("aria-valuetext", panel.at.textContent);
    if (!moved) return;
    if (!panel.cursor) {
      panel.cursor = make("div", { className: "cursor" }, make("i"));
      panel.plot.querySelector(".frame").append(panel.cursor);
    }
    panel.cursor.style.left = `${100 * xOf(panel)(entry.run) / WIDE}%`;
    panel.cursor.firstChild.style.top = `${100 * yOf(panel.shown ?? panel.scale)(entry.value) / HIGH}%`;
  };
  const wake = (panel) => {
    if (panel.at) return;
    unpack(panel);
    const { plot, entries } = panel;
    panel.at = make("p", { className: "at" });
    plot.after(panel.at);
    for (const [name, value] of Object.entries({ role: "slider", tabindex: 0, "aria-valuemin": 1,
      "aria-valuemax": entries.length })) plot.setAttribute(name, value);
    choose(panel, entries.length - 1, false);
    const point = (event) => {
      const box = plot.querySelector("svg").getBoundingClientRect();
      const wanted = WIDE * (event.clientX - box.left) / box.width, x = xOf(panel);
      let nearest = 0, least = Infinity;
      entries.forEach((entry, place) => {
        const off = Math.abs(x(entry.run) - wanted);
        if (off < least) [nearest, least] = [place, off];
      });
      choose(panel, nearest);
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("focus", () => choose(panel, panel.chosen));
    plot.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.round(entries.length / 10));
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -page, PageUp: page,
        Home: -Infinity, End: Infinity }[event.key];
      if (!step) return;
      event.preventDefault();
      choose(panel, Math.min(entries.length - 1, Math.max(0, panel.chosen + step)));
    });
    const fold = panel.element.querySelector("details");
    fold.addEventListener("toggle", () => {
      if (!fold.querySelector(".each")) fold.append(tableOf(panel));
    });
  };
  const tableOf = (panel) => {
    const row = (tag, ...cells) => make("tr", {}, ...cells.map((cell) => make(tag, {}, cell)));
    const rows = [...panel.entries].reverse().map((entry) => row("td", when(at[entry.run]), commitOf(entry),
      withUnit(panel, entry.value), spanOf(entry), entry.failed ? "✗ failed" : "", String(entry.segment), runs.id[entry.run]));
    const table = make("table", {}, make("caption", {}, "Every run, newest first"),
      make("thead", {}, row("th", "UTC", "Commit", "Value", "Interval", "Gate", "Segment", "Run")), make("tbody", {}, ...rows));
    const box = make("div", { className: "scroll each", tabIndex: 0 }, table);
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Every run, newest first");
    return box;
  };

  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const ofMetric = panels.filter((panel) => panel.element.dataset.metric === metric.value);
    const found = ofMetric.filter((panel) => (!study.value || panel.element.dataset.study === study.value)
      && wanted.every((word) => panel.words.includes(word)));
    const visible = new Set(found);
    for (const panel of panels) panel.element.hidden = !visible.has(panel);
    for (const each of metrics) each.hidden = each.dataset.metric !== metric.value;
    found.forEach(wake);
    const common = scales.value === "shared" && [Math.min(...found.map((panel) => panel.scale[0])),
      Math.max(...found.map((panel) => panel.scale[1]))];
    for (const panel of found) {
      const state = along.value + (common || "");
      if (panel.drawn !== state) draw(panel, common || panel.scale);
      panel.drawn = state;
    }
    count.textContent = `${found.length} of ${ofMetric.length} experiments`;
  };
  let waiting = 0;
  words.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 120); });
  for (const control of [metric, study, along, scales]) control.addEventListener("change", apply);
  const label = (name, control) => make("label", {}, name, control);
  const controls = make("div", { className: "controls" },
    ...(metrics.length > 1 ? [label("Metric", metric)] : []), ...(studies.length > 1 ? [label("Study", study)] : []),
    ...(panels.length > 1 ? [label("Words", words)] : []), label("Along", along), label("Scale", scales));
  document.querySelector("#trends h2").after(
    make("details", { open: innerWidth > 720 }, make("summary", {}, "Show: ", count), controls));

  const reveal = () => {
    const panel = panels.find((each) => `#${each.element.id}` === location.hash);
    if (!panel) return;
    if (panel.element.hidden) {
      metric.value = panel.element.dataset.metric;
      study.value = words.value = "";
      apply();
    }
    panel.element.scrollIntoView();
  };
  apply();
  reveal();
  addEventListener("hashchange", reveal);
})();
