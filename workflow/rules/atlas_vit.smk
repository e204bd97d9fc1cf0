PRETRAIN = entry.command(
    "python" if own_python else sys.executable, "-m", "models._pretrain_vit"
)


# Makes the weights in models/weights/atlas-vit again. No part of `all`; the old ones stay until the new are complete.
rule atlas_vit:
    log:
        f"{RESULTS}/logs/atlas_vit.log",
    conda:
        "../../environment.yml"
    shell:
        f"{PRETRAIN} 2>&1 | tee {{log:q}}"
