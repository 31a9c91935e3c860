"""The training pipeline: from a source of images to a registered, explained, promoted-or-refused model.

This is the one definition. `pipelines.local` runs it in processes, and the compiled form runs on Kubeflow.
"""

import copy
import json
from typing import Any, Dict, List  # noqa: UP035 - KFP knows items of loops as structures by these

from kfp import dsl
from kfp.dsl import pipeline_context

from components import BEFORE, OUT_OF_FOLD, TASKS
from components.augment.component import augment as augment_step
from components.balance.component import balance as balance_step
from components.compare.component import compare as compare_step
from components.evaluate.component import evaluate as evaluate_step
from components.explain.component import explain as explain_step
from components.fold.component import fold as fold_step
from components.ingest.component import ingest as ingest_step
from components.notify.component import notify as notify_step
from components.pool.component import pool as pool_step
from components.promote.component import promote as promote_step
from components.register.component import register as register_step
from components.segment.component import segment as segment_step
from components.select.component import select as select_step
from components.split.component import split as split_step
from components.train.component import train as train_step
from components.validate.component import validate as validate_step
from components.validate.masks_and_plan.component import validate_masks_and_plan
from components.validate.predictions.component import validate_predictions
from components.validate.splits.component import validate_splits
from dermaflow.params import AugmentParams, SplitParams
from pipelines.code import code_digest
from pipelines.provision import Provision, apply_retries, read_table, trainings

PIPELINE_NAME = "dermaflow"
RUN_ID, JOB_ID = dsl.PIPELINE_JOB_NAME_PLACEHOLDER, dsl.PIPELINE_JOB_ID_PLACEHOLDER


def _named(component: Any, name: str) -> Any:
    """A component as a task of another name: what it does twice must be told apart in reports, folders and pods."""
    other = copy.copy(component)
    other.component_spec = copy.deepcopy(component.component_spec)
    other.component_spec.name = name
    return other


ingest_originals, validate_originals = _named(ingest_step, "ingest-originals"), _named(validate_step, "validate-originals")
split_fold, augment_fold = _named(fold_step, "split-fold"), _named(augment_step, "augment-fold")
train_fold, evaluate_fold = _named(train_step, "train-fold"), _named(evaluate_step, "evaluate-fold")


def _images(tasks: set[str], provision: Provision | None) -> str:
    """JSON of the image of each task by digest, for the evidence; empty where tasks are processes or images were not built."""
    lock = provision.lock.images if provision and provision.lock else {}
    rows = provision.table.tasks if provision else {}
    found = {name: lock[rows[name].group].pinned for name in sorted(tasks) if name in rows and rows[name].group in lock}
    return json.dumps(found) if found else ""


def training_pipeline(defaults: dict[str, Any], *, parallelism: int = 0, provision: Provision | None = None) -> Any:
    """Build the pipeline.

    Parameters
    ----------
    defaults: value of each pipeline parameter, from `pipelines.arguments`; a run may override any of them. With
        augment.before_split the graph begins with the tasks of components.BEFORE; with split.folds it has those of
        components.OUT_OF_FOLD, for so many folds.
    parallelism: architectures (and folds of each) trained at the same time; 0 is as many as the cluster has room for.
    provision: gives each task its place on a cluster; None for a local run, which takes retries from the table alone.
    """
    table = provision.table if provision else read_table()
    config = provision.config() if provision else None
    items = trainings(defaults["architectures"], table)
    before_split = AugmentParams.from_json(defaults["augment"]).before_split
    folds = list(range(SplitParams.from_json(defaults["split"]).folds))
    names = {*TASKS, *(BEFORE if before_split else ()), *(OUT_OF_FOLD if folds else ())}
    images = _images(names, provision)

    @dsl.pipeline(
        name=PIPELINE_NAME,
        description="Retrain, judge, explain, register and promote a skin-lesion classifier",
        pipeline_config=config,
    )
    def dermaflow(
        data: str = defaults["data"],
        validate: str = defaults["validate"],
        segment: str = defaults["segment"],
        split: str = defaults["split"],
        previous: str = defaults["previous"],
        augment: str = defaults["augment"],
        mixup: str = defaults["mixup"],
        train: str = defaults["train"],
        architectures: List[Dict[str, str]] = items,  # noqa: UP006
        evaluate: str = defaults["evaluate"],
        explain: str = defaults["explain"],
        register: str = defaults["register"],
        promote: str = defaults["promote"],
        policy: str = defaults["policy"],
        params: str = defaults["params"],
        profile: str = defaults["profile"],
        source_digest: str = defaults["source_digest"],
        weights_digest: str = defaults["weights_digest"],
        pipeline_digest: str = defaults["pipeline_digest"],
        commit: str = defaults["commit"],
        compiled_digest: str = defaults["compiled_digest"],
    ) -> None:
        """Each parameter is one section of params.yaml as JSON; the digests make caching follow content and code.

        1. ingest reads the source; validate is the gate that everything after it waits for.
        2. segment finds the lesions; split parts them, and keeps the sides of an earlier split; augment plans what the
           trainer may draw. Splits, masks and plan each pass a gate before anything reads them.
        3. Each architecture is trained on its own GPU, and judged on validation and test; then a gate on the predictions.
        4. select takes the candidate by validation alone; compare judges it and the champion on the same test images;
           explain shows what it looks at.
        5. With folds, each is held out from a model of each architecture in turn, made and judged as in 2 and 3; pool
           judges what these models say together. No test image is in a fold.
        6. register creates the version and its evidence; promote applies the policy.
        7. Whatever happened, notify tells it.
        """
        told = notify_step(run_id=RUN_ID, job_id=JOB_ID, profile=profile, register=register)
        told.set_display_name("Tell the outcome")

        with dsl.ExitHandler(told, name="training"):
            reading = {"data": data, "source_digest": source_digest, "code": code_digest("ingest")}
            if before_split:  # the paper profile's order: the source of all that follows is a balanced one
                originals = ingest_originals(**reading).set_display_name("Read the originals").outputs["dataset"]
                checked = validate_originals(dataset=originals, validate=validate, code=code_digest("validate"))
                checked.set_display_name("Check the originals")
                balanced = balance_step(dataset=originals, augment=augment, code=code_digest("balance")).after(checked)
                reading["source"] = balanced.set_display_name("Balance the classes").outputs["source"]
            ingested = ingest_step(**reading)
            dataset = ingested.set_display_name("Read the source").outputs["dataset"]

            validated = validate_step(dataset=dataset, validate=validate, code=code_digest("validate"))
            validated.set_display_name("Check the data")

            segmented = segment_step(dataset=dataset, segment=segment, code=code_digest("segment")).after(validated)
            masks = segmented.set_display_name("Find the lesions").outputs["masks"]

            parted = split_step(dataset=dataset, split=split, previous=previous, code=code_digest("split"))
            splits = parted.after(validated).set_display_name("Split by lesion").outputs["splits"]

            splits_checked = validate_splits(
                dataset=dataset, splits=splits, validate=validate, previous=previous, code=code_digest("validate")
            )
            splits_checked.set_display_name("Check the splits")

            planned = augment_step(dataset=dataset, splits=splits, augment=augment, mixup=mixup, code=code_digest("augment"))
            plan = planned.after(splits_checked).set_display_name("Plan the augmentation").outputs["plan"]

            masks_and_plan_checked = validate_masks_and_plan(
                dataset=dataset, splits=splits, masks=masks, plan=plan, validate=validate, code=code_digest("validate")
            )
            masks_and_plan_checked.after(splits_checked).set_display_name("Check masks and plan")

            def train_and_judge(trainer: Any, judge: Any, splits: Any, plan: Any, architecture: Any) -> tuple[Any, Any]:
                """A model of an architecture by some splits and their plan, on a GPU of its own, and its evaluation."""
                trained = trainer(
                    dataset=dataset,
                    splits=splits,
                    plan=plan,
                    masks=masks,
                    architecture=architecture,
                    train=train,
                    register=register,
                    weights_digest=weights_digest,
                    code=code_digest("train"),
                )
                judged = judge(
                    dataset=dataset,
                    splits=splits,
                    masks=masks,
                    model=trained.outputs["model"],
                    evaluate=evaluate,
                    code=code_digest("evaluate"),
                )
                return trained, judged

            with dsl.ParallelFor(items=architectures, name="architectures", parallelism=parallelism) as training:
                trained, judged = train_and_judge(train_step, evaluate_step, splits, plan, training.architecture)
                trained.after(masks_and_plan_checked).set_display_name("Train")
                judged.set_display_name("Judge")

            predictions_checked = validate_predictions(
                dataset=dataset,
                splits=splits,
                evaluations=dsl.Collected(judged.outputs["evaluation"]),
                validate=validate,
                code=code_digest("validate"),
            )
            predictions_checked.set_display_name("Check the predictions")

            selected = select_step(
                evaluations=dsl.Collected(judged.outputs["evaluation"]),
                models=dsl.Collected(trained.outputs["model"]),
                evaluate=evaluate,
                code=code_digest("select"),
            )
            selected.after(predictions_checked).set_display_name("Select by validation")
            candidate, evaluation = selected.outputs["candidate"], selected.outputs["evaluation"]

            compared = compare_step(
                dataset=dataset, splits=splits, masks=masks, evaluation=evaluation, evaluate=evaluate, register=register
            )
            compared.set_display_name("Compare with the champion")

            out_of_fold = {}
            if folds:
                with dsl.ParallelFor(items=architectures, name="out-of-fold", parallelism=parallelism) as training:
                    with dsl.ParallelFor(items=folds, name="folds", parallelism=parallelism) as fold:
                        parted = split_fold(splits=splits, fold=fold, code=code_digest("fold"))
                        parted.after(masks_and_plan_checked).set_display_name("Hold out a fold")
                        held_out = parted.outputs["held_out"]

                        planned = augment_fold(
                            dataset=dataset, splits=held_out, augment=augment, mixup=mixup, code=code_digest("augment")
                        )
                        planned.set_display_name("Plan the fold's augmentation")

                        trained, judged = train_and_judge(
                            train_fold, evaluate_fold, held_out, planned.outputs["plan"], training.architecture
                        )
                        trained.set_display_name("Train without the fold")
                        judged.set_display_name("Judge on the fold")

                    pooled = pool_step(
                        dataset=dataset,
                        splits=splits,
                        evaluations=dsl.Collected(judged.outputs["evaluation"]),
                        evaluate=evaluate,
                        code=code_digest("pool"),
                    )
                    pooled.set_display_name("Judge all folds together")
                out_of_fold["out_of_fold"] = dsl.Collected(pooled.outputs["evaluation"])

            explained = explain_step(
                dataset=dataset,
                splits=splits,
                masks=masks,
                model=candidate,
                evaluation=evaluation,
                explain=explain,
                code=code_digest("explain"),
            )
            explained.set_display_name("Explain")

            registered = register_step(
                dataset=dataset,
                report=validated.outputs["report"],
                splits_report=splits_checked.outputs["report"],
                masks_and_plan_report=masks_and_plan_checked.outputs["report"],
                predictions_report=predictions_checked.outputs["report"],
                masks=masks,
                splits=splits,
                plan=plan,
                model=candidate,
                evaluation=evaluation,
                selection=selected.outputs["selection"],
                comparison=compared.outputs["comparison"],
                explanation=explained.outputs["explanation"],
                register=register,
                params=params,
                run_id=RUN_ID,
                source_digest=source_digest,
                pipeline_digest=pipeline_digest,
                commit=commit,
                job_id=JOB_ID,
                images=images,
                compiled_digest=compiled_digest,
                **out_of_fold,
            )
            registered.set_display_name("Register the challenger")

            promoted = promote_step(
                registration=registered.outputs["registration"],
                comparison=compared.outputs["comparison"],
                promote=promote,
                register=register,
                policy=policy,
                commit=commit,
            )
            promoted.set_display_name("Promote or refuse")

        tasks = pipeline_context.Pipeline.get_default_pipeline().tasks
        if provision:
            provision.apply(tasks)
        else:
            apply_retries(tasks, table)

    return dermaflow
