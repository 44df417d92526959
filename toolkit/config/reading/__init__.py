"""From the text of a config file to checked sections: YAML and TOML, places in the file, errors and warnings, the names of
other programs. `loader.py` lists the steps. It knows no key of a job: those are in `toolkit/config/sections`."""
