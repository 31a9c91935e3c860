"""Parameters: every profile loads, and every fault is told by key, value, place and remedy."""

import shutil

import pytest
from pydantic import ValidationError

from dermaflow.errors import InputError
from dermaflow.params import Params, Section, load_params, profile_names
from tests.sources import ROOT


def load(*overrides, profile="default", root=ROOT):
    return load_params(profile, overrides, root)


def refusal(*overrides, profile="default", root=ROOT):
    with pytest.raises(InputError) as caught:
        load(*overrides, profile=profile, root=root)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def project(tmp_path):
    """A folder with the project's own parameter files."""
    shutil.copy2(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    return tmp_path


@pytest.mark.parametrize("profile", profile_names(ROOT))
def test_each_profile_loads(profile):
    assert load(profile=profile).profile == profile


def test_the_profiles_that_the_documentation_names_exist():
    assert {"default", "phantom", "quick", "paper"} <= set(profile_names(ROOT))


def test_a_profile_changes_its_own_values_and_no_others():
    default, quick = load(), load(profile="quick")
    assert quick.train.architectures == ("cnn", "resnet50")
    assert (quick.split.train, quick.split.seed) == (0.70, default.split.seed)
    assert quick.augment == default.augment


def test_the_paper_profile_asks_for_a_random_split():
    assert load(profile="paper").split.strategy == "random"
    assert load().split.strategy == "lesion"


def test_a_setting_is_laid_over_the_profile_and_the_last_one_wins():
    params = load("train.epochs=3", "train.epochs=4", "split.strategy=random", profile="phantom")
    assert params.train.epochs == 4
    assert params.split.strategy == "random"
    assert params.data.source == "data/phantom"


def test_settings_may_be_lists_and_mappings():
    params = load("train.architectures=[xception, cnn]", "data.subset={images_per_class: 5, keep_all: [df]}")
    assert params.train.architectures == ("xception", "cnn")
    assert params.data.subset.images_per_class == 5
    assert params.data.subset.keep_all == ("df",)
    assert load("data.subset=null", profile="quick").data.subset is None


def test_parameters_can_not_be_changed_after_loading():
    with pytest.raises(ValidationError):
        load().train.epochs = 3


@pytest.mark.parametrize("name", list(Params.model_fields))
def test_each_section_survives_json(name):
    section = getattr(load(profile="quick"), name)
    if isinstance(section, Section):
        assert type(section).from_json(section.to_json()) == section
        assert "\n" not in section.to_json()


def test_a_sections_json_does_not_depend_on_the_order_of_its_settings():
    one = load("train.dropout={cnn: 0.2, xception: 0.3}").train.to_json()
    assert one == load("train.dropout={xception: 0.3, cnn: 0.2}").train.to_json()


def test_all_parameters_survive_json():
    params = load()
    assert Params.from_json(params.to_json()) == params


# --- refusals ---


def test_an_unknown_key_is_named_with_the_nearest_known_one():
    told = refusal("train.epoch=3")
    assert "unknown parameter train.epoch (--set train.epoch=3)" in told
    assert "did you mean 'epochs'?" in told
    assert "batch_size" in told


def test_an_unknown_section_is_named_with_the_nearest_known_one():
    told = refusal("trian.epochs=3")
    assert "unknown parameter trian" in told
    assert "did you mean 'train'?" in told


def test_an_unknown_key_inside_an_optional_section_lists_what_is_known():
    told = refusal("data.subset={images_per_clas: 5}")
    assert "did you mean 'images_per_class'?" in told


@pytest.mark.parametrize(
    ("setting", "key", "value", "allowed"),
    [
        ("train.batch_size=-1", "train.batch_size", "-1", "greater than or equal to 1"),
        ("train.batch_size=5000", "train.batch_size", "5000", "less than or equal to 4096"),
        ("train.learning_rate=0", "train.learning_rate", "0", "greater than 0"),
        ("train.epochs=three", "train.epochs", "'three'", "valid integer"),
        ("train.epochs=3.5", "train.epochs", "3.5", "valid integer"),
        ("train.epochs=true", "train.epochs", "True", "valid integer"),
        ("train.epochs=", "train.epochs", "None", "valid integer"),
        ("augment.flips=1", "augment.flips", "1", "valid boolean"),
        ("augment.hue=0.2", "augment.hue", "0.2", "less than or equal to 0.1"),
        ("data.image_size=16", "data.image_size", "16", "greater than or equal to 32"),
        ("data.max_reject_share=5%", "data.max_reject_share", "'5%'", "valid number"),
        ("data.max_reject_share=.nan", "data.max_reject_share", "nan", "1"),
        ("data.source=''", "data.source", "''", "at least 1 character"),
        ("augment.balance=sample", "augment.balance", "'sample'", "'none', 'sampler', 'square_root'"),
        ("promote.mode=always", "promote.mode", "'always'", "'disabled', 'dry_run' or 'enabled'"),
        ("train.masks=corp", "train.masks", "'corp'", "'none', 'crop', 'channel' or 'background_off'"),
        ("train.architectures=cnn", "train.architectures", "'cnn'", "array"),
        ("train.architectures=[]", "train.architectures", "[]", "at least 1"),
        ("train.architectures=[resnet]", "train.architectures.0", "'resnet'", "cnn, resnet50, xception"),
        ("train.architectures=[cnn, cnn]", "train.architectures", "'cnn'", "must not repeat"),
        ("train.weights.vgg=vgg.h5", "train.weights.vgg", "'vgg'", "cnn, resnet50, xception"),
        ("train.dropout.cnn=1.5", "train.dropout.cnn", "1.5", "less than 1"),
        (
            "data.subset={images_per_class: 5, keep_all: [nevus]}",
            "data.subset.keep_all.0",
            "'nevus'",
            "akiec, bcc, bkl, df, mel, nv, vasc",
        ),
        ("train=3", "train", "3", "object"),
    ],
)
def test_a_value_that_is_not_allowed_is_told_with_its_key_its_place_and_what_is(setting, key, value, allowed):
    first = refusal(setting).splitlines()[0]
    assert first.startswith(f"parameter {key} is ")
    assert value in first
    assert f"(--set {setting})" in first
    assert allowed in first.rpartition(f"(--set {setting})")[2]


def test_shares_that_do_not_add_up_are_refused():
    told = refusal("split.train=0.7")
    assert "parameter split (--set split.train=0.7)" in told
    assert "must add up to 1" in told


def test_shares_that_add_up_in_decimal_are_not_refused_for_their_binary_rest():
    assert load("split={train: 0.7, validation: 0.2, test: 0.1}").split.train == 0.7


def test_bounds_in_the_wrong_order_are_refused():
    assert "min_area_share must be below max_area_share" in refusal("segment.min_area_share=0.95")


def test_weights_for_a_network_that_has_none_are_refused():
    assert "cnn has no published weights; allowed: none" in refusal("train.weights.cnn=cnn.h5")


def test_all_faults_are_told_at_once():
    assert len(refusal("train.epochs=0", "train.batch_size=0", "mixup.alfa=1").splitlines()) == 3


@pytest.mark.parametrize("setting", ["train.epochs", "=3", "train..epochs=3", ".epochs=3"])
def test_a_setting_that_is_not_key_equals_value_is_refused(setting):
    told = refusal(setting)
    assert told.startswith(f"--set {setting}: expected KEY=VALUE")
    assert "train.epochs=3" in told


def test_a_setting_whose_value_is_not_yaml_is_refused():
    assert refusal("train.architectures=[cnn") == "--set train.architectures=[cnn: the value is not valid YAML"


def test_an_unknown_profile_is_refused_with_those_that_exist():
    told = refusal(profile="papr")
    assert told.startswith("unknown profile 'papr'; allowed: default, ")
    assert "paper" in told


def test_a_profile_can_not_lead_out_of_its_folder():
    assert "unknown profile" in refusal(profile="../params")


def test_the_file_that_holds_the_bad_value_is_named(project):
    (project / "params" / "quick.yaml").write_text("augment: {flips: perhaps}\n")
    assert "parameter augment.flips is 'perhaps' (params/quick.yaml)" in refusal(profile="quick", root=project)
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("  flips: true\n", "  flips: perhaps\n"))
    assert "parameter augment.flips is 'perhaps' (params.yaml)" in refusal(root=project)


def test_the_place_named_is_the_last_that_set_the_value(project):
    (project / "params" / "quick.yaml").write_text("train: {epochs: 0}\n")
    assert "(params/quick.yaml)" in refusal(profile="quick", root=project)
    assert "(--set train.epochs=-2)" in refusal("train.epochs=-2", profile="quick", root=project)
    assert load("train.epochs=2", profile="quick", root=project).train.epochs == 2


def test_a_missing_parameter_is_named_with_the_file_to_add_it_to(project):
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("  epochs: 50", "  # epochs: 50"))
    assert refusal(root=project) == "parameter train.epochs is missing; add it to params.yaml"


def test_a_folder_without_parameters_says_where_to_run(tmp_path):
    assert "run dermaflow in the project's root folder" in refusal(root=tmp_path)


@pytest.mark.parametrize(
    ("text", "told"), [("a: [", "is not valid YAML"), ("- a\n", "must be a mapping"), ("", "must be a mapping")]
)
def test_a_file_that_is_no_mapping_is_refused_by_name(project, text, told):
    (project / "params.yaml").write_text(text)
    message = refusal(root=project)
    assert str(project / "params.yaml") in message
    assert told in message


def test_scientific_notation_is_a_number():
    assert load("train.learning_rate=1e-3").train.learning_rate == 0.001


def test_a_value_that_yaml_takes_for_a_date_is_refused_like_any_other():
    assert "parameter train.epochs" in refusal("train.epochs=2024-01-01")


def test_the_profile_can_not_be_set_as_a_parameter():
    assert "profile" in refusal("profile=quick")


def test_one_bad_item_of_a_list_is_one_fault():
    assert len(refusal("train.architectures=[resnet]").splitlines()) == 1


def test_the_steps_of_the_measured_recipe_come_to_the_profile_tuned(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import recipe

    weights = "train.weights.resnet50=imagenet"
    steps, tuned = load_params("default", [*recipe.settings_of(recipe.LAST), weights], ROOT), load_params("tuned", [], ROOT)
    assert steps.model_copy(update={"profile": "tuned"}) == tuned
