# `snakemake --report FILE.html` (or .zip) shows what is marked here, with the captions of reports/captions.
report: "../../reports/captions/workflow.rst"


TABLES = products.table_names(GRID)


rule tables:
    input:
        AWAITED,
    output:
        report(
            f"{RESULTS}/tables/cells.csv",
            caption="../../reports/captions/cells.rst",
            category="Cells",
            labels={"grid": GRID.name, "what": "one row a cell", "format": "CSV"},
        ),
        f"{RESULTS}/tables/summary.md",
        [
            report(
                f"{RESULTS}/tables/{name}.csv",
                caption=f"../../reports/captions/{name}.rst",
                category="Tables",
                labels={"grid": GRID.name, "table": name, "format": "CSV"},
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
        report(
            f"{RESULTS}/report/index.html",
            caption="../../reports/captions/report.rst",
            category="Report",
            labels={"grid": GRID.name, "what": "the whole report", "format": "HTML"},
        ),
    log:
        f"{RESULTS}/logs/report.log",
    conda:
        "../../environment.yml"
    shell:
        f"{ATLAS} report {ON_GRID} {ON_DATA} > {{log:q}} 2>&1"
