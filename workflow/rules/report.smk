rule tables:
    input:
        AWAITED,
    output:
        f"{RESULTS}/tables/cells.csv",
        f"{RESULTS}/tables/summary.md",
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
        f"{RESULTS}/report/index.html",
    log:
        f"{RESULTS}/logs/report.log",
    conda:
        "../../environment.yml"
    shell:
        f"{ATLAS} report {ON_GRID} > {{log:q}} 2>&1"
