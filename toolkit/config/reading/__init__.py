"""From the text of a config file to checked sections: YAML and TOML, places in the
file, errors and warnings, names of other programs. `loader.py` lists the steps.

It knows none of a job's keys: these are in `toolkit/config/sections`."""
