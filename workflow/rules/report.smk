rule tables:
    input:
        expand("results/cells/{cell}.json", cell=JOBS),
    output:
        f"{RESULTS}/tables/cells.csv",
        f"{RESULTS}/tables/summary.md",
    log:
        f"{RESULTS}/logs/tables.log",
    params:
        python=PYTHON,
        grid=str(GRID.path),
    conda:
        "../../environment.yml"
    shell:
        "{params.python:q} -m workflow tables --grid {params.grid:q} > {log:q} 2>&1"


rule report:
    input:
        rules.tables.output,
    output:
        f"{RESULTS}/report/index.html",
    log:
        f"{RESULTS}/logs/report.log",
    params:
        python=PYTHON,
        grid=str(GRID.path),
    conda:
        "../../environment.yml"
    shell:
        "{params.python:q} -m workflow report --grid {params.grid:q} > {log:q} 2>&1"
