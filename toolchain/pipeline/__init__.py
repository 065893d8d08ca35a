"""Stages, the content-addressed store that keeps their outputs, and the artifacts made of them.

double = Stage("double", version=1, run=write_it, sources={"text": Source(path)}, config={"times": 2})
with Store.open() as store, show_progress() as progress:
    results = run_pipeline([double], store, progress=progress)
    publish(Path("artifacts/demo"), results, store, recipe=recipe_yaml)
Artifact.open(Path("artifacts/demo")).dir("double")
"""
