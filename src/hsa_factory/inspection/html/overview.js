"use strict";

/** The address of a sample on the page. */
function linkTo(name) {
  return `#sample=${encodeURIComponent(name)}`;
}

/* All rows of the prepared data: how long, how much of each type, how much is trained, what was lost, who stands out. */
class Overview {
  /** @param {Map<string, number>} shown Place on the page of the samples that are on it, by their name. */
  constructor(root, data, shown) {
    this.root = root;
    this.shown = shown;
    this.datasets = data.datasets;
    this.accounts = data.accounts;
    this.rows = data.rows.map(([index, dataset, length, g, l, n, trained, cut, markerCut, side]) => ({
      index, name: `${index} ${side}`.trim(), dataset: this.datasets[dataset], length, types: [g, l, n], trained, cut, markerCut: Boolean(markerCut),
    }));
  }

  show() {
    const { rows } = this;
    const total = rows.reduce((sum, row) => sum + row.length, 0);
    const trained = rows.reduce((sum, row) => sum + row.trained, 0);
    const cut = rows.filter((row) => row.cut);
    const dropped = Object.values(this.accounts).reduce((sum, account) => sum + Object.values(account.dropped).reduce((a, b) => a + b, 0), 0);
    const tiles = [
      ["rows", number(rows.length)],
      ["tokens", number(total)],
      ["trained", percent(trained / Math.max(total, 1))],
      ["lost to truncation", `${number(cut.length)} rows`],
      ["dropped", `${number(dropped)} samples`],
    ];
    const list = element("section", "card picked");
    list.hidden = true;
    const pick = (picked, label) => {
      list.replaceChildren(element("h3", "", label), this.list(picked.map((place) => rows[place])));
      list.hidden = false;
      list.scrollIntoView({ block: "nearest" });
    };
    const longest = rows.reduce((most, row) => Math.max(most, row.length), 1);
    const share = (row) => row.trained / Math.max(row.length, 1);
    const lostShare = (row) => row.cut / Math.max(row.length + row.cut, 1);
    this.root.replaceChildren(
      element("div", "tiles", ...tiles.map(([name, value]) => element("div", "card tile", element("b", "", value), element("span", "", name)))),
      this.legend(),
      this.datasetTable(),
      element("div", "charts",
        histogram("Length in tokens", rows.map((row) => row.length), [0, longest], (value) => number(Math.round(value)), pick),
        histogram("Trained share", rows.map(share), [0, 1], percent, pick),
        histogram("Share lost to truncation", rows.map(lostShare), [0, 1], percent, pick),
        ...HSA.settings.types.map((name, kind) => histogram(`${name} share`, rows.map((row) => row.types[kind] / Math.max(row.length, 1)), [0, 1], percent, pick, `k${kind}`))),
      list,
      element("div", "outliers",
        this.outliers("Longest", (a, b) => b.length - a.length, (row) => `${number(row.length)} tokens`),
        this.outliers("Least trained", (a, b) => share(a) - share(b), (row) => `${percent(share(row))} trained`),
        this.outliers("Most lost to truncation", (a, b) => b.cut - a.cut, (row) => `${number(row.cut)} tokens`, (row) => row.cut),
        this.outliers("Feedback marker cut away", (a, b) => b.cut - a.cut, (row) => `${number(row.cut)} tokens lost`, (row) => row.markerCut),
        this.droppedCard()));
  }

  legend() {
    const swatch = (className, text) => element("span", "", element("i", `swatch ${className}`), text);
    return element("div", "legend",
      ...HSA.settings.types.map((name, kind) => swatch(`b${kind}`, `tokens of type ${name}`)),
      swatch("bar-colour", "number of rows; click a bar for its rows"));
  }

  datasetTable() {
    const names = Object.keys(this.accounts);
    if (!names.length) return null;
    const heading = ["dataset", "samples", "marker", "dropped", "cut", "tokens", "types", "trained", "blind"];
    const table = element("table", "", element("tr", "", ...heading.map((name) => element("th", "", name))));
    for (const name of names) {
      const account = this.accounts[name];
      const dropped = Object.values(account.dropped).reduce((a, b) => a + b, 0);
      const types = HSA.settings.types.map((type) => account.tokens[type]);
      const cells = [...[account.samples, account.with_marker, dropped, account.text_truncated + account.turns_removed, account.total_tokens].map((value) => element("td", "", number(value))), element("td", "wide", typeBar(types)), element("td", "", percent(account.trained_share)), this.blindCell(account.sight || {})];
      cells.forEach((cell, column) => (cell.dataset.label = heading[column + 1])); // a narrow screen shows no head
      table.append(element("tr", "", element("th", "", name), ...cells));
    }
    return element("section", "card datasets", table);
  }

  /** Replies whose first token sees nothing of what they answer. */
  blindCell({ blind, replies }) {
    const cell = element("td", "", replies ? `${number(blind)}/${number(replies)}` : "–");
    cell.title = "replies that see nothing of the message before them, or of its media or its feedback token";
    return cell;
  }

  outliers(title, order, label, filter = () => true) {
    const rows = this.rows.filter(filter).sort(order).slice(0, 8);
    return element("section", "card", element("h3", "", title), rows.length ? this.list(rows, label) : element("p", "hint", "none"));
  }

  list(rows, label = (row) => `${number(row.length)} tokens, ${percent(row.trained / Math.max(row.length, 1))} trained`) {
    const most = 200;
    const items = rows.slice(0, most).map((row) => {
      const place = this.shown.get(row.name);
      const name = `${row.dataset} #${row.name}`;
      const link = place === undefined ? element("span", "absent", name) : element("a", "", name);
      if (place === undefined) link.title = `Not on this page: --samples ${row.index}`;
      else link.href = linkTo(row.name);
      return element("li", "", link, element("small", "", label(row)));
    });
    if (rows.length > most) items.push(element("li", "hint", `and ${number(rows.length - most)} more`));
    return element("ol", "", ...items);
  }

  droppedCard() {
    const items = [];
    for (const [name, account] of Object.entries(this.accounts)) {
      for (const [reason, count] of Object.entries(account.dropped)) {
        const listed = account.dropped_samples[reason] || [];
        items.push(element("li", "", `${name}: ${number(count)} × ${reason}`, element("small", "", `samples ${listed.join(", ")}${count > listed.length ? ", …" : ""}`)));
      }
    }
    return element("section", "card", element("h3", "", "Dropped"), items.length ? element("ol", "", ...items) : element("p", "hint", "none"));
  }
}
