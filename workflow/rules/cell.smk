# Results of the cells that others continue from. They are waited for, and never make a finished cell run again.
STARTS = entry.starts(GRID)
START = ancient(
    lambda wildcards: STARTS.get(
        (f"{wildcards.place}-{wildcards.key}", wildcards.seed), []
    )
)


# One cell is one job. It writes its own result, also when it runs out of memory, diverges or is not supported.
rule cell:
    input:
        START if STARTS else [],
    output:
        # a result that another run wrote since this one began stays, and the job finds it
        update("results/cells/{place}-{key}/seed{seed}.json"),
    log:
        f"{RESULTS}/logs/{{place}}-{{key}}/seed{{seed}}.log",
    wildcard_constraints:
        place=r"[\w.-]+/[\w.-]+/[\w.-]+/[\w.-]+",
        key="[0-9a-f]{8}",
        seed=r"\d+",
    conda:
        "../../environment.yml"
    threads: int(config.get("threads", 1))
    resources:
        **SITE,
        **GPU,
        mem_mb=scheduler.grown(OF_CELL, "mem_mb"),
        runtime=scheduler.grown(OF_CELL, "runtime"),
    shell:
        scheduler.logged(
            f"{ATLAS} cell {ON_GRID} {ON_DATA} --key {{wildcards.place}}-{{wildcards.key}}/{{wildcards.seed}} --threads {{threads}}"
        )


PACK_NEEDS = lambda wildcards: pack.needs(PACKS[wildcards.pack], NEEDS)
PACK_GPU = scheduler.gpus(
    config, (lambda wildcards: PACK_NEEDS(wildcards)["gpu"]) if ON_GPU else None
)


# Cells that share task and network, one after the other in one job, each with its own result.
rule pack:
    output:
        f"{RESULTS}/packs/{{pack}}.json",
    log:
        f"{RESULTS}/logs/packs/{{pack}}.log",
    wildcard_constraints:
        pack=r"[\w.-]+",
    conda:
        "../../environment.yml"
    threads: int(config.get("threads", 1))
    resources:
        **SITE,
        **PACK_GPU,
        mem_mb=scheduler.grown(PACK_NEEDS, "mem_mb"),
        runtime=scheduler.grown(PACK_NEEDS, "runtime"),
    shell:
        scheduler.logged(
            f"{ATLAS} pack {ON_GRID} {ON_DATA} {{wildcards.pack:q}} --threads {{threads}}"
        )
