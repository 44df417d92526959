from types import SimpleNamespace

from extensions.sd_trainer.plan import plan_run


def test_plan_of_the_photographs(dataset) -> None:
    photos = dataset("config/examples/photos", resolution=(128,))
    config = SimpleNamespace(
        type="sd_trainer",
        datasets=(photos,),
        trigger_word="sks",
        model=SimpleNamespace(name_or_path="no/such/folder", arch=None),
        train=SimpleNamespace(batch_size=2, steps=80, epochs=0, gradient_accumulation=2),
        display_name=lambda job: "my_char",
    )
    plan = plan_run(config, None)
    assert plan.samples_per_epoch == 3 * 40 + 2 * 20
    assert [(f.images, f.repeats) for f in plan.datasets] == [(2, 20), (3, 40)]
    assert all(b.width % 32 == b.height % 32 == 0 for f in plan.datasets for b in f.buckets)
    assert plan.epochs == 80 * 2 / plan.micro_batches_per_epoch
