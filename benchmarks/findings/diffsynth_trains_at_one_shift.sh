#!/usr/bin/env bash
# DiffSynth-Studio trains Qwen-Image at one shift for every size, and at no noise level below 0.02.
#
# Versions: diffsynth 2.1.12, torch 2.13.0.
#
# Its pipelines of Qwen-Image and Qwen-Image-2.1 give the scheduler the size of the image, as diffusers does: the shift
# is 1.71 at 512 x 512 and 2.30 at 1328 x 1328. Training gives none, and takes exp(0.8) = 2.23. Who trains at 512 x 512
# for samples of that size trains on the levels of 1260 x 1260: the median is 0.695 instead of 0.638. The end of the
# sampler's schedule, 0.02, is in the 1,000 levels of training too, so the finest noise is never trained. The loss at
# pure noise, where each sample begins, has the weight 0.
#
# Output seen:
#   training, any size:  median 0.695, least 0.02, weights [0.0, 1.683, 0.104]
#   sampling  512 x  512: median 0.638, least 0.02
#   sampling 1024 x 1024: median 0.673, least 0.02
#   sampling 1328 x 1328: median 0.703, least 0.02
source "$(dirname "$0")/head.sh"
venv/bin/pip install --quiet torch==2.13.0
venv/bin/pip install --quiet numpy typing_extensions
# The package imports torchvision; its scheduler, which is one file, does not.
venv/bin/pip install --quiet --no-deps diffsynth==2.1.12
venv/bin/python - <<'PYTHON'
import importlib.util
import inspect
import sysconfig
from pathlib import Path

import torch

package = Path(sysconfig.get_paths()["purelib"], "diffsynth")
spec = importlib.util.spec_from_file_location("flow_match", package / "diffusion" / "flow_match.py")
flow_match = importlib.util.module_from_spec(spec)
spec.loader.exec_module(flow_match)

# The only call that prepares the plain training of any model: no size is given.
training = (package / "diffusion" / "training_module.py").read_text(encoding="utf-8")
assert training.count("set_timesteps(") == training.count("set_timesteps(1000, training=True)") == 1
for name in ("qwen_image.py", "qwen_image_21.py"):
    pipeline = (package / "pipelines" / name).read_text(encoding="utf-8")
    assert 'FlowMatchScheduler("Qwen-Image")' in pipeline and "dynamic_shift_len=" in pipeline

scheduler = flow_match.FlowMatchScheduler("Qwen-Image")


def levels():
    sigmas = scheduler.sigmas
    return round(sigmas.median().item(), 3), round(sigmas.min().item(), 4)


scheduler.set_timesteps(1000, training=True)
median, least = levels()
# At the noise levels 1, 0.5 and 0.02.
weights = [round(scheduler.training_weight(torch.tensor([1000 * sigma])).item(), 3) for sigma in (1, 0.5, 0.02)]
print(f"training, any size:  median {median}, least {least}, weights {weights}")
seen = [(median, least, weights)]
for side in (512, 1024, 1328):
    scheduler.set_timesteps(1000, dynamic_shift_len=(side // 16) ** 2)
    median, least = levels()
    print(f"sampling {side:4} x {side:4}: median {median}, least {least}")
    seen.append((median, least))
expected = [(0.695, 0.02, [0.0, 1.683, 0.104]), (0.638, 0.02), (0.673, 0.02), (0.703, 0.02)]
assert seen == expected, f"it was {expected}"
PYTHON
