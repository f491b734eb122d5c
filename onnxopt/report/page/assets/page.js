"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures"), data = read("data"), bins = read("bins"), tried = read("tried");

  // Colours: as the system has them, or dark, or light.
  const root = document.documentElement, theme = document.getElementById("theme");
  const themes = [
    ["", "◐", "Colours: as the system has them"],
    ["dark", "●", "Colours: dark"],
    ["light", "○", "Colours: light"],
  ];
  const remember = (value) => { try { localStorage.setItem("onnxopt-theme", value); } catch { /* a file may not store */ } };
  const remembered = () => { try { return localStorage.getItem("onnxopt-theme") || ""; } catch { return ""; } };
  const setTheme = (value) => {
    const [name, sign, label] = themes.find(([each]) => each === value) || themes[0];
    if (name) { root.dataset.theme = name; } else { delete root.dataset.theme; }
    theme.textContent = sign;
    theme.setAttribute("aria-label", label);
    theme.title = label;
  };
  theme.addEventListener("click", () => {
    const index = themes.findIndex(([each]) => each === (root.dataset.theme || ""));
    const next = themes[(index + 1) % themes.length][0];
    remember(next);
    setTheme(next);
  });
  setTheme(remembered());

  // Tables: a header sorts, and sorts the other way when pressed again; unknown numbers are last.
  const sort = (header) => {
    const table = header.closest("table"), body = table.tBodies[0];
    const column = [...header.parentNode.children].indexOf(header);
    const numeric = header.classList.contains("n");
    const known = header.getAttribute("aria-sort");
    const direction = known === "none" ? (numeric ? "descending" : "ascending")
      : known === "ascending" ? "descending" : "ascending";
    const sign = direction === "ascending" ? 1 : -1;
    const collator = new Intl.Collator(undefined, { numeric: true });
    const keyed = [...body.rows].map((row) => {
      const cell = row.cells[column];
      return [numeric ? (cell.dataset.v === undefined ? NaN : Number(cell.dataset.v)) : cell.textContent, row];
    });
    keyed.sort(([a], [b]) => {
      if (!numeric) { return (a === "") - (b === "") || sign * collator.compare(a, b); }
      return Number.isNaN(a) - Number.isNaN(b) || sign * (a - b) || 0;
    });
    for (const each of header.parentNode.children) { each.setAttribute("aria-sort", "none"); }
    header.setAttribute("aria-sort", direction);
    body.append(...keyed.map(([, row]) => row));
  };
  for (const button of document.querySelectorAll("thead th[aria-sort] button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
  for (const input of document.querySelectorAll(".table .filter input")) {
    const rows = [...input.closest(".table").querySelectorAll("tbody tr")];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const output = input.parentNode.querySelector("output");
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, index) => {
        row.hidden = !words.every((word) => texts[index].includes(word));
        shown += !row.hidden;
      });
      output.textContent = words.length ? `${shown} of ${rows.length}` : "";
    });
  }

  // What a model that was tried is made of.
  const pick = (report, index) => {
    const found = tried[report][index], place = document.getElementById(`${report}-picked`);
    const title = document.createElement("strong");
    title.textContent = found.label;
    const list = document.createElement("ul");
    for (const [region, treatment] of Object.entries(found.treatments)) {
      list.append(Object.assign(document.createElement("li"), { textContent: `${region}: ${treatment}` }));
    }
    if (!list.children.length) {
      list.append(Object.assign(document.createElement("li"), { textContent: "no region is treated on its own" }));
    }
    place.replaceChildren(title, document.createTextNode(found.reason ? ` — ${found.reason}` : ""), list);
  };
  for (const button of document.querySelectorAll("[data-pick]")) {
    button.addEventListener("click", () => pick(button.closest("article").id, Number(button.dataset.pick)));
  }

  // Charts.
  const options = { actions: false, renderer: "svg", ast: true, tooltip: { disableDefaultStyle: true } };
  const draw = async (id, spec) => {
    const place = document.getElementById(id).querySelector(".plot");
    const shared = Object.keys(data).filter((name) => JSON.stringify(spec).includes(`"name":"${name}"`));
    const datasets = { ...Object.fromEntries(shared.map((name) => [name, data[name]])), ...spec.datasets };
    const { view } = await window.vegaEmbed(place, { ...spec, datasets }, options);
    if (id.endsWith("-tradeoff")) {
      view.addEventListener("click", (_, item) => {
        if (item && item.datum && item.datum.index !== undefined) { pick(id.split("-")[0], item.datum.index); }
      });
    }
    return view;
  };

  // The histogram of the tensor that is chosen.
  const frames = {};
  const show = async (report, tensor) => {
    const found = bins[report][tensor];
    if (!found) { return; }
    const id = `${report}-histogram`;
    const spec = structuredClone(figures[id]);
    spec.datasets = {
      bins: found.counts.map((count, index) => ({ count, start: found.edges[index], end: found.edges[index + 1] })),
      ends: found.ends.map((value) => ({ value })),
    };
    document.getElementById(`${report}-about`).textContent = found.about
      + (found.ends.length === 2 ? `, keeps ${found.ends[0].toPrecision(4)} to ${found.ends[1].toPrecision(4)}` : "");
    const known = await frames[report];
    if (known) { known.finalize(); }
    frames[report] = draw(id, spec);
    await frames[report];
  };
  for (const input of document.querySelectorAll("input.tensor")) {
    const report = input.dataset.report, names = Object.keys(bins[report]);
    input.addEventListener("change", () => show(report, input.value));
    for (const button of document.querySelectorAll(`.step[data-report="${report}"]`)) {
      button.addEventListener("click", () => {
        const next = names.indexOf(input.value) + Number(button.dataset.step);
        input.value = names[(next + names.length) % names.length];
        show(report, input.value);
      });
    }
  }

  // One chart after the other, so that the page answers meanwhile.
  (async () => {
    for (const [id, spec] of Object.entries(figures)) {
      if (id.endsWith("-histogram")) {
        const input = document.querySelector(`input.tensor[data-report="${id.split("-")[0]}"]`);
        await show(input.dataset.report, input.value);
      } else {
        await draw(id, spec);
      }
      await new Promise((resolve) => setTimeout(resolve));
    }
    document.body.dataset.drawn = "yes";
  })();
})();
