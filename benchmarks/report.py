"""Make the tables of docs/benchmarks.md (and of its Chinese twin) and the plots from the committed results.

python benchmarks/report.py
"""

import plots
from page_words import TEXTS
from results import ROOT
from tables import tables


START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"


def write_tables() -> None:
    """Write the tables between the markers of each page."""
    for name, texts in TEXTS.items():
        path = ROOT / name
        before, _, rest = path.read_text(encoding="utf-8").partition(START)
        _, _, after = rest.partition(END)
        path.write_text(f"{before}{START}\n{tables(texts)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Write everything."""
    plots.plot_steps()
    plots.plot_attention()
    plots.plot_decoding()
    plots.plot_one_sequence()
    write_tables()


if __name__ == "__main__":
    main()
