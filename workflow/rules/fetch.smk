# Brings weights and data sets to this machine, which cells then read with the hub switched off. No part of `all`.
rule fetch:
    log:
        f"{RESULTS}/logs/fetch.log",
    conda:
        "../../environment.yml"
    shell:
        f"{ATLAS} fetch {ON_GRID} {ON_DATA} 2>&1 | tee {{log:q}}"
