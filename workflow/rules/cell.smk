# One cell is one job. It writes its own result, also when it runs out of memory, diverges or is not supported.
rule cell:
    output:
        "results/cells/{cell}.json",
    log:
        f"{RESULTS}/logs/{{cell}}.log",
    wildcard_constraints:
        cell=r"[\w.-]+/[\w.-]+/[\w.-]+/[\w.-]+-[0-9a-f]{8}/seed\d+",
    params:
        python=PYTHON,
        grid=str(GRID.path),
        data_root=["--data-root", GRID.data_root] if GRID.data_root else [],
        key=lambda wildcards: JOBS[wildcards.cell]["key"],
    threads: int(config.get("threads", 1))
    resources:
        mem_mb=lambda wildcards, attempt: JOBS[wildcards.cell]["mem_mb"] * attempt,
        runtime=lambda wildcards, attempt: JOBS[wildcards.cell]["runtime"] * attempt,
        **{name: GRID.resources[name] for name in ("gpu",) if name in GRID.resources},
    conda:
        "../../environment.yml"
    shell:
        "{params.python:q} -m workflow cell --grid {params.grid:q} --key {params.key} --threads {threads}"
        " {params.data_root:q} > {log:q} 2>&1"
