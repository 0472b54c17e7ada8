// The curves of `mt report`, drawn by uPlot from the JSON of the page; and the buttons that copy commands.
"use strict";
(() => {
  const { charts } = JSON.parse(document.getElementById("data").textContent);
  const HEIGHT = 260;
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Custom properties are light-dark(...): only a property that is used has one colour.
  function colour(name) {
    const probe = document.createElement("i");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }

  const written = (value) => {
    if (value == null) return "none";
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    if (size !== 0 && size < 0.001) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  };

  // The curves of a chart, and its levels as curves from the first step to the last.
  function curvesOf(chart) {
    const steps = chart.series.flatMap((one) => [one.steps[0], one.steps[one.steps.length - 1]]);
    const ends = [Math.min(...steps), Math.max(...steps)];
    return [
      ...chart.series.map((one) => ({ ...one, own: one.second && !one.dashed ? 1 : one.run })),
      ...chart.levels.map((level) => ({ label: level.label, steps: ends, values: [level.value, level.value], level: true })),
    ];
  }

  // The value of a curve at a row of the joined table, or the last one before it.
  function valueAt(values, row) {
    for (let i = row; i >= 0; i--) if (values[i] != null) return values[i];
    return null;
  }

  function draw(place, chart) {
    const curves = curvesOf(chart);
    const data = uPlot.join(curves.map((curve) => [curve.steps, curve.values]));
    const [first, last] = [data[0][0], data[0][data[0].length - 1]];
    const legend = Object.assign(document.createElement("ul"), { className: "legend" });
    const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
    const reset = Object.assign(document.createElement("button"), { type: "button", className: "reset", textContent: "Show all", hidden: true });
    let plot;

    // Loses no toggled curve and no zoom where the colours change.
    const shown = curves.map(() => true);
    const textAt = (row) => curves
      .map((curve, i) => (shown[i] ? `${curve.label} ${written(valueAt(data[i + 1], row))}` : ""))
      .filter(Boolean);

    curves.forEach((curve, i) => {
      const item = document.createElement("li");
      const button = Object.assign(document.createElement("button"), { type: "button" });
      const line = document.createElement("i");
      line.className = curve.level ? "level" : `run${curve.own}${curve.dashed ? " dashed" : ""}`;
      line.setAttribute("aria-hidden", "true");
      button.setAttribute("aria-pressed", "true");
      button.append(line, curve.label);
      button.addEventListener("click", () => {
        shown[i] = !shown[i];
        button.setAttribute("aria-pressed", String(shown[i]));
        plot.setSeries(i + 1, { show: shown[i] });
      });
      item.append(button);
      legend.append(item);
    });
    if (curves.length > 1) place.append(legend);
    place.append(reset);

    function point(row) {
      plot.setCursor({ left: plot.valToPos(data[0][row], "x"), top: plot.over.clientHeight / 2 });
    }

    function zoom(factor) {
      const { min, max } = plot.scales.x;
      const middle = plot.cursor.idx == null ? (min + max) / 2 : data[0][plot.cursor.idx];
      const half = Math.max(((max - min) / 2) * factor, 1);
      plot.setScale("x", { min: Math.max(first, middle - half), max: Math.min(last, middle + half) });
    }

    function follow(plot) {
      const { idx, left } = plot.cursor;
      tip.hidden = idx == null || left < 0;
      if (tip.hidden) return;
      const lines = [`step ${data[0][idx].toLocaleString("en")}`, ...textAt(idx)];
      tip.replaceChildren(...lines.map((text) => Object.assign(document.createElement("div"), { textContent: text })));
      const x = plot.over.offsetLeft + left;
      const wide = place.clientWidth;
      tip.style.left = `${Math.max(0, x + 14 + tip.offsetWidth > wide ? x - tip.offsetWidth - 14 : x + 14)}px`;
      tip.style.top = `${plot.root.offsetTop + 24}px`;
      plot.over.setAttribute("aria-valuenow", data[0][idx]);
      plot.over.setAttribute("aria-valuetext", lines.join(", "));
    }

    function build() {
      const ink = colour("soft"), line = colour("line");
      const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "12px system-ui" };
      const options = {
        width: Math.max(place.clientWidth, 200),
        height: HEIGHT,
        legend: { show: false },
        cursor: { y: false, drag: { x: true, y: false }, points: { size: (u, i) => (curves[i - 1].level ? 0 : 7) } },
        scales: { x: { time: false, range: (u, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) } },
        axes: [
          { ...axis, values: (u, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick.toLocaleString("en") : "")) },
          { ...axis, size: 66, values: (u, ticks) => ticks.map((tick) => (tick === 0 ? "0" : written(tick))) },
        ],
        series: [
          {},
          ...curves.map((curve, i) => ({
            label: curve.label,
            show: shown[i],
            stroke: curve.level ? ink : colour(`run${curve.own}`),
            width: curve.level ? 1.5 : 2,
            dash: curve.level ? [2, 4] : curve.dashed ? [7, 4] : undefined,
            spanGaps: true,
            points: { show: !curve.level && curve.steps.length <= 40, size: 5 },
          })),
        ],
        hooks: {
          setCursor: [follow],
          setScale: [(u, key) => { if (key === "x") reset.hidden = u.scales.x.min <= first && u.scales.x.max >= last; }],
        },
      };
      plot = new uPlot(options, data, place);
      place.append(tip);
      const over = plot.over;
      over.tabIndex = 0;
      over.setAttribute("role", "slider");
      over.setAttribute("aria-label", `${chart.title}, by step`);
      over.setAttribute("aria-valuemin", first);
      over.setAttribute("aria-valuemax", last);
      over.setAttribute("aria-valuenow", last);
      over.setAttribute("aria-valuetext", [`step ${last.toLocaleString("en")}`, ...textAt(data[0].length - 1)].join(", "));
      over.addEventListener("keydown", (event) => {
        const rows = data[0].length, at = plot.cursor.idx ?? rows - 1, far = event.shiftKey ? 10 : 1;
        const to = { ArrowLeft: at - far, ArrowDown: at - far, ArrowRight: at + far, ArrowUp: at + far, PageUp: at + 10, PageDown: at - 10, Home: 0, End: rows - 1 }[event.key];
        if (to !== undefined) point(Math.min(Math.max(to, 0), rows - 1));
        else if (event.key === "+" || event.key === "=") zoom(0.5);
        else if (event.key === "-") zoom(2);
        else if (event.key === "Escape") plot.setCursor({ left: -10, top: -10 });
        else return;
        event.preventDefault();
      });
      over.addEventListener("blur", () => plot.setCursor({ left: -10, top: -10 }));
      for (const name of ["pointerdown", "pointermove"]) {
        over.addEventListener(name, (event) => {
          if (event.pointerType !== "touch") return;
          const box = over.getBoundingClientRect();
          plot.setCursor({ left: event.clientX - box.left, top: event.clientY - box.top });
        });
      }
    }

    build();
    reset.addEventListener("click", () => plot.setScale("x", { min: first, max: last }));
    new ResizeObserver(() => {
      const width = Math.max(place.clientWidth, 200);
      if (width !== plot.width) plot.setSize({ width, height: HEIGHT });
    }).observe(place);
    dark.addEventListener("change", () => { plot.destroy(); build(); });
  }

  for (const place of document.querySelectorAll(".plot")) draw(place, charts[place.dataset.training][place.dataset.chart]);

  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      let done = true;
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        // no clipboard, as on a page from a file in some browsers: select the text instead
        getSelection().selectAllChildren(code);
        done = false;
      }
      document.getElementById("copied").textContent = done ? "Copied." : "Selected: press Ctrl+C to copy.";
    });
  }
})();
