"use strict";
(() => {
  const root = document.documentElement;
  const templates = JSON.parse(document.getElementById("templates").textContent);
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const figures = [...document.querySelectorAll(".figure")];
  let chosenTheme = null;
  let site = null;

  const theme = () => chosenTheme || (prefersDark.matches ? "dark" : "light");

  // A figure's data, as it stands in the page.
  const read = (name) => JSON.parse(document.getElementById(`data-${name}`).textContent);

  const stepOf = (layout) => {
    const slider = layout.sliders && layout.sliders[0];
    return site === null || !slider ? -1 : slider.steps.findIndex((step) => step.value === site);
  };

  // On a narrow page panels stand below each other, and legends below the figure.
  const NARROW = 640;
  const fit = (element, layout, narrow) => {
    Object.entries(narrow).forEach(([path, value]) => {
      const parts = path.split(".");
      const last = parts.pop();
      parts.reduce((part, key) => (part[key] ??= {}), layout)[last] = value;
    });
    if (layout.height) element.style.height = `${layout.height}px`;
  };

  const draw = (element) => {
    if (element.dataset.state) return;
    element.dataset.state = "drawing";
    const { data, layout, narrow } = read(element.dataset.name);
    layout.template = templates[theme()];
    if (element.clientWidth < NARROW) fit(element, layout, narrow || {});
    const config = { responsive: true, displaylogo: false, showTips: false,
      showSendToCloud: false, plotlyServerURL: "" };
    Plotly.newPlot(element, data, layout, config).then(() => {
      element.dataset.state = "drawn";
      showSite(element);
      if (element.dataset.theme !== theme()) paint(element);
    });
    element.dataset.theme = theme();
  };

  const paint = (element) => {
    element.dataset.theme = theme();
    Plotly.relayout(element, { template: templates[theme()] });
  };

  const showSite = (element) => {
    const index = stepOf(element.layout);
    if (index < 0 || element.layout.sliders[0].active === index) return;
    const [restyle, relayout] = element.layout.sliders[0].steps[index].args;
    Plotly.update(element, restyle, { ...relayout, "sliders[0].active": index });
  };

  const applyTheme = () => {
    root.dataset.theme = theme();
    figures.filter((element) => element.dataset.state === "drawn").forEach(paint);
  };

  const observer = new IntersectionObserver(
    (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => draw(e.target)),
    { rootMargin: "200px 0px" },
  );

  // Numbers as CSV. Arrays are typed ones, packed in base64.
  const types = { f8: Float64Array, f4: Float32Array, i4: Int32Array, u4: Uint32Array,
    i2: Int16Array, u2: Uint16Array, i1: Int8Array, u1: Uint8Array };

  const unpack = (values) => {
    if (!values || typeof values.bdata !== "string") return values;
    const bytes = Uint8Array.from(atob(values.bdata), (letter) => letter.charCodeAt(0));
    const flat = [...new types[values.dtype](bytes.buffer)];
    if (!values.shape) return flat;
    const [rows, columns] = String(values.shape).split(",").map(Number);
    if (columns === undefined) return flat;
    return Array.from({ length: rows }, (_, row) => flat.slice(row * columns, (row + 1) * columns));
  };

  const plain = (text) => String(text).replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");

  // Spreadsheets take what begins with these for a formula.
  const quote = (cell) => {
    if (typeof cell === "number") return Number.isFinite(cell) ? String(cell) : "";
    const text = plain(cell ?? "");
    return `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replace(/"/g, '""')}"`;
  };

  const figureRows = (name) => {
    const rows = [["trace", "x", "y", "z", "of"]];
    read(name).data.forEach((trace) => {
      const [x, y, z] = [trace.x, trace.y, trace.z].map(unpack);
      const of = unpack(trace.hovertext);
      const title = trace.name ?? "";
      if (z && Array.isArray(z[0])) {
        const shown = unpack(trace.customdata) ?? z;
        shown.forEach((row, i) => row.forEach((value, j) => {
          rows.push([title, x ? x[j] : j, y ? y[i] : i, value, ""]);
        }));
        return;
      }
      (y ?? []).forEach((value, i) => {
        rows.push([title, x ? x[i] : i, value, z ? z[i] : "", Array.isArray(of) ? of[i] : ""]);
      });
    });
    return rows;
  };

  const tableRows = (name) => {
    const table = document.querySelector(`table[data-name="${name}"]`);
    return [...table.rows].map((row) => [...row.cells].map((cell) =>
      cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value)));
  };

  const download = (name, rows) => {
    const text = rows.map((row) => row.map(quote).join(",")).join("\r\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = `${name}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  };

  document.querySelectorAll("button.csv").forEach((button) => {
    button.addEventListener("click", () => {
      const { figure, table } = button.dataset;
      download(figure ?? table, figure ? figureRows(figure) : tableRows(table));
    });
  });
  window.geomhooks = { figureRows, tableRows, quote };

  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => {
        const { value: number, order } = row.cells[column].dataset;
        return Number(number ?? order); // texts go by the order in which they came
      };
      const known = (number) => (Number.isNaN(number) ? 1 : 0); // what is missing stays last
      const sorted = [...table.tBodies[0].rows].sort((a, b) =>
        known(value(a)) - known(value(b)) || (value(a) - value(b)) * (down ? -1 : 1));
      table.tBodies[0].append(...sorted);
    }));
  });

  const picker = document.getElementById("layer");
  if (picker) {
    picker.selectedIndex = Math.floor(picker.options.length / 2);
    picker.addEventListener("change", () => {
      site = picker.value;
      figures.filter((element) => element.dataset.state === "drawn").forEach(showSite);
    });
  }
  document.getElementById("theme").addEventListener("click", () => {
    chosenTheme = theme() === "dark" ? "light" : "dark";
    applyTheme();
  });
  prefersDark.addEventListener("change", applyTheme);
  applyTheme();
  figures.forEach((element) => observer.observe(element));
})();
