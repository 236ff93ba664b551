"use strict";
(() => {
  const root = document.documentElement;
  const templates = JSON.parse(document.getElementById("templates").textContent);
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const figures = [...document.querySelectorAll(".figure")];
  let chosenTheme = null;
  let site = null;

  const theme = () => chosenTheme || (prefersDark.matches ? "dark" : "light");

  // Numbers as the page has them, packed in base64.
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  // One half of a symmetric matrix, as whole numbers.
  const whole = ({ half, rows, scale }) => {
    const values = new Int16Array(bytes(half).buffer);
    const matrix = Array.from({ length: rows }, () => new Array(rows));
    let at = 0;
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column <= row; column += 1) {
        const value = values[at] === -32768 ? null : values[at] * scale;
        matrix[row][column] = value;
        matrix[column][row] = value;
        at += 1;
      }
    }
    return matrix;
  };

  // A figure's data, as it stands in the page.
  const read = (name) => {
    const figure = JSON.parse(document.getElementById(`data-${name}`).textContent);
    figure.data.forEach((trace) => {
      if (trace.x && trace.x.as === "first") trace.x = figure.data[0].x;
      if (trace.y && trace.y.as === "x") trace.y = trace.x;
      if (trace.z && trace.z.half) trace.z = whole(trace.z);
    });
    return figure;
  };

  const stepOf = (layout) => {
    const slider = layout.sliders && layout.sliders[0];
    return site === null || !slider ? -1 : slider.steps.findIndex((step) => step.value === site);
  };

  const plain = (text) => String(text).replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");

  // What is too long for a line goes on in the next one; texts have no markup but entities.
  const wrap = (text, longest) => {
    const lines = [""];
    String(text ?? "").split(" ").forEach((word) => {
      const line = lines[lines.length - 1];
      if (line && plain(line).length + plain(word).length >= longest) lines.push(word);
      else lines[lines.length - 1] = line ? `${line} ${word}` : word;
    });
    return lines;
  };

  // Titles fit beside the buttons; on a narrow page panels stand below each other, and legends
  // below the figure, or between title and figure where a slider is below.
  const NARROW = 640;
  const MOST_NAMES = 6;
  const fit = (element, data, layout, narrow) => {
    const small = element.clientWidth < NARROW;
    const longest = small ? (element.clientWidth - 16) / 7.2 : (element.clientWidth - 330) / 8;
    layout.title = layout.title ?? {};
    const titles = [[layout.title, "text"]];
    (layout.sliders ?? []).forEach((slider) => slider.steps.forEach((step) => {
      titles.push([step.args[1], "title.text"]);
    }));
    const lines = Math.max(...titles.map(([holder, key]) => {
      const wrapped = wrap(holder[key], longest);
      holder[key] = wrapped.join("<br>");
      return wrapped.length;
    }));
    const named = data.filter((trace) => trace.visible !== false && trace.showlegend !== false);
    Object.assign(layout.title, { y: 1, yref: "container", yanchor: "top",
      pad: { t: (small ? 8 : 20) + (lines > 1 ? 14 : 0) } });
    layout.margin = { t: 60 + 24 * (lines - 1) };
    if (!small) {
      if (named.length > MOST_NAMES) {
        layout.legend = { orientation: "v", x: 1.02, xanchor: "left", y: 1, yanchor: "top" };
      }
      return;
    }
    Object.entries(narrow).forEach(([path, value]) => {
      const parts = path.split(".");
      const last = parts.pop();
      parts.reduce((part, key) => (part[key] ??= {}), layout)[last] = value;
    });
    Object.assign(layout.title, { font: { size: 14 }, x: 0, xref: "container" });
    layout.title.pad.l = 4;
    Object.keys(layout).filter((key) => /^xaxis/.test(key)).forEach((key) => {
      const { title } = layout[key];
      if (title && title.text) title.text = title.text.replace(/ \(@in.*/, "");
    });
    const legend = layout.showlegend ?? named.length > 1;
    const above = Boolean(layout.sliders);
    layout.showlegend = legend && named.length <= MOST_NAMES && !Object.keys(narrow).length;
    layout.legend = above ? { ...layout.legend, x: 0, xanchor: "left" }
      : { ...layout.legend, x: 0, xanchor: "left", y: -0.28, yanchor: "top" };
    layout.margin = { t: 20 + 20 * lines + (layout.showlegend && above ? 28 : 12), l: 48, r: 12 };
    if (layout.scene) {
      Object.assign(layout.margin, { l: 0, r: 0 });
      data.forEach((trace) => {
        if (trace.marker && trace.marker.colorbar) Object.assign(trace.marker.colorbar,
          { orientation: "h", thickness: 8, len: 0.8, y: 0, yanchor: "bottom" });
      });
    }
    if (layout.height) element.style.height = `${layout.height}px`;
  };

  const draw = (element) => {
    if (element.dataset.state) return;
    element.dataset.state = "drawing";
    const { data, layout, narrow } = read(element.dataset.name);
    layout.template = templates[theme()];
    fit(element, data, layout, narrow ?? {});
    const config = { responsive: true, displaylogo: false, showTips: false,
      showSendToCloud: false, plotlyServerURL: "",
      displayModeBar: element.clientWidth < NARROW ? false : "hover" };
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
    const flat = [...new types[values.dtype](bytes(values.bdata).buffer)];
    if (!values.shape) return flat;
    const [rows, columns] = String(values.shape).split(",").map(Number);
    if (columns === undefined) return flat;
    return Array.from({ length: rows }, (_, row) => flat.slice(row * columns, (row + 1) * columns));
  };


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
      if (Array.isArray(y) && y.every((value) => value === null)) return;
      const title = [...new Set([...(trace.meta ?? []), trace.name ?? ""])].join(", ");
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

  // What is jumped to stands below the bar at the top, whose height depends on its texts.
  const bar = document.querySelector("header");
  const leaveRoom = () => { root.style.scrollPaddingTop = `${bar.offsetHeight + 8}px`; };
  window.addEventListener("resize", leaveRoom);
  leaveRoom();

  const contents = document.querySelector("nav details");
  if (window.innerWidth <= 900) contents.open = false;

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
