"""Model families, each a folder behind `toolkit.contracts.model.DiffusionModel`.

`families` describes a family before anything is loaded, `loading` opens a model,
`qwen_image` and `qwen_image21` are the families. `hub` downloads, `single_file` and
`beside` read the files of ComfyUI, and `tiny` writes small models for tests.
`toolkit.registry.FAMILIES` lists the families. This package itself imports no torch.
"""
