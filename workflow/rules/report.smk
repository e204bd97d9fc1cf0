# `snakemake --report FILE.html` (or .zip) shows what is marked here, with the captions of reports/captions.
report: "../../reports/captions/workflow.rst"


TABLES = products.table_names(GRID)

# `update`: Snakemake deletes other outputs before it makes them again, also from under another run on the same grid.


rule tables:
    input:
        AWAITED,
    output:
        update(
            report(
                f"{RESULTS}/tables/cells.csv",
                caption="../../reports/captions/cells.rst",
                category="Cells",
                labels={"grid": GRID.name, "what": "one row a cell", "format": "CSV"},
            )
        ),
        update(f"{RESULTS}/tables/summary.md"),
        [
            update(
                report(
                    f"{RESULTS}/tables/{name}.csv",
                    caption=f"../../reports/captions/{name}.rst",
                    category="Tables",
                    labels={"grid": GRID.name, "table": name, "format": "CSV"},
                )
            )
            for name in TABLES
        ],
    log:
        f"{RESULTS}/logs/tables.log",
    conda:
        "../../environment.yml"
    shell:
        f"{ATLAS} tables {ON_GRID} > {{log:q}} 2>&1"


rule report:
    input:
        rules.tables.output,
    output:
        update(
            report(
                f"{RESULTS}/report/index.html",
                caption="../../reports/captions/report.rst",
                category="Report",
                labels={
                    "grid": GRID.name,
                    "what": "the whole report",
                    "format": "HTML",
                },
            )
        ),
    log:
        f"{RESULTS}/logs/report.log",
    conda:
        "../../environment.yml"
    shell:
        f"{ATLAS} report {ON_GRID} > {{log:q}} 2>&1"
