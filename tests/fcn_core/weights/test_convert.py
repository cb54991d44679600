"""Weights of every format become the network they were written from, or are refused by name."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_core.errors import WeightsError
from fcn_core.labels import VOC, LabelSet
from fcn_core.networks.architecture import VARIANTS, Architecture
from fcn_core.networks.model import FCN
from fcn_core.predictor import Predictor
from fcn_core.preprocessing import CAFFE_VOC, PREPROCESSINGS
from fcn_core.weights.convert import ConvertOptions, convert
from fcn_core.weights.sources import VGG16_LAYERS
from fcn_core.weights.weights_file import WeightsFile, save_weights
from fcn_core.weights.weights_info import WeightsInfo
from tests.support import formats
from tests.support.formats import caffemodel, classifier_caffemodel, torch_file, vgg16_state

WIDTH = 1 / 32
LABELS = LabelSet("four", ("a", "b", "c", "d"))
GEO = LabelSet("geo", ("sky", "wall", "ground"))
STAGED = ("fcn32s", "fcn16s", "fcn8s", "fcn8s-atonce")
IMAGE = np.random.default_rng(5).integers(0, 256, (37, 51, 3), np.uint8)


@pytest.fixture(scope="module")
def make(random_fcn):
    def make(variant="fcn8s", classes=4, width=WIDTH):
        return random_fcn(variant, num_classes=classes, width=width)

    return make


def request(variant="fcn8s", form="caffe", labels=(LABELS,), **more) -> ConvertOptions:
    return ConvertOptions(form, variant, labels, **more)


def pixels(model: FCN, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 100 * torch.randn(1, model.architecture.input_channels, 33, 49, generator=generator)


def assert_same(found: FCN, written: FCN) -> None:
    assert found.architecture == written.architecture
    with torch.inference_mode():
        expected = written.forward_heads(pixels(written))
        for head, logits in found.forward_heads(pixels(written)).items():
            assert torch.equal(logits, expected[head])


def refused(data: bytes, wanted: ConvertOptions, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        convert(data, wanted, "the file")
    assert caught.value.where.startswith("the file") and caught.value.remedy


# --- Round trips: a file of each format gives the network it was written from -------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["V1", "V2"])
def test_a_caffemodel_gives_its_network(make, variant, form) -> None:
    model = make(variant, width=1 / 16 if variant == "fcn-alexnet" else WIDTH)
    found = convert(caffemodel(model, form), request(variant), "the file")
    assert_same(found.model, model)
    assert not found.info.is_initialisation


def test_legacy_shapes_and_double_precision_give_the_same_network(make) -> None:
    for options in ({"legacy": True}, {"doubles": True}):
        found = convert(caffemodel(make(), "V1", **options), request(), "the file")
        assert_same(found.model, make())


@pytest.mark.parametrize("variant", STAGED)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_of_pytorch_fcn_gives_its_network(make, variant, legacy) -> None:
    data = torch_file(OrderedDict(formats.as_written(make(variant))), legacy=legacy)
    assert_same(convert(data, request(variant, "pytorch-fcn"), "the file").model, make(variant))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_training_checkpoint_of_pytorch_fcn_gives_its_network(make, legacy) -> None:
    data = torch_file(checkpoint(make(), "FCN8s"), legacy=legacy)
    if legacy:  # as numpy 1 wrote it
        data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert_same(convert(data, request(form="pytorch-fcn"), "the file").model, make())


def checkpoint(model: FCN, arch: str) -> dict:
    """What torchfcn.Trainer saves: its optimizer's state and a numpy number are in it."""
    state = formats.as_written(model)
    momenta = {n: {"momentum_buffer": torch.ones_like(t)} for n, t in enumerate(state.values())}
    group = {"lr": 1e-10, "momentum": 0.99, "weight_decay": 0.0005, "params": list(momenta)}
    return {
        "epoch": 3,
        "iteration": 4000,
        "arch": arch,
        "optim_state_dict": {"state": momenta, "param_groups": [group]},
        "model_state_dict": state,
        "best_mean_iu": np.float64(0.655),
    }


def test_the_prefix_of_a_data_parallel_is_taken_off(make) -> None:
    state = {f"module.{name}": t for name, t in formats.as_written(make()).items()}
    found = convert(torch_file(state), request(form="pytorch-fcn"), "the file")
    assert_same(found.model, make())


WRITERS = {
    "caffemodel V1": ("caffe", lambda model: caffemodel(model, "V1", legacy=True)),
    "caffemodel V2": ("caffe", caffemodel),
    "state dict": ("pytorch-fcn", lambda model: torch_file(formats.as_written(model))),
    "checkpoint": ("pytorch-fcn", lambda model: torch_file(checkpoint(model, "FCN8s"))),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_masks_of_the_written_file_are_the_networks(make, writer) -> None:
    """The whole way: BGR, the VOC mean, the file, the predictor."""
    model = make()
    bgr = IMAGE[..., ::-1].astype(np.float32) - np.float32(CAFFE_VOC.mean)
    image = torch.from_numpy(bgr.transpose(2, 0, 1).copy())[None]
    with torch.no_grad():  # no class leads everywhere
        model.score_pool3.bias -= model(image).mean(dim=(0, 2, 3))
        logits = model(image)
    form, write = WRITERS[writer]
    found = convert(write(model), request(form=form), "the file")
    predictor = Predictor.load(WeightsFile(save_weights(found.model, found.info), "w"))
    mask = predictor.predict([IMAGE])[0].mask
    np.testing.assert_array_equal(mask, logits[0].argmax(0).numpy())
    assert len(np.unique(mask)) > 1


@pytest.mark.parametrize("swapped", [False, True])
def test_two_heads_follow_the_order_of_the_label_sets(swapped) -> None:
    heads = (("sem", 4), ("geo", 3))
    model = randomised(Architecture("fcn16s", 4, WIDTH, heads))
    labels = (GEO, LABELS) if swapped else (LABELS, GEO)
    found = convert(caffemodel(model), request("fcn16s", labels=labels), "the file")
    assert (found.info.labels, *found.info.other_labels) == labels
    with torch.inference_mode():
        for head in ("sem", "geo"):
            found_logits = found.model(pixels(model), head)
            assert torch.equal(found_logits, model(pixels(model), head))
    again = WeightsFile(save_weights(found.model, found.info), "w")
    assert again.info == found.info and len(again.load().architecture.heads) == 2


def randomised(architecture: Architecture, seed: int = 1) -> FCN:
    generator = torch.Generator().manual_seed(seed)
    model = FCN(architecture).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    for module in model.modules():
        if hasattr(module, "choose_form"):
            module.choose_form()
    return model


@pytest.mark.parametrize("form", ["caffe", "pytorch-fcn"])
def test_a_learned_deconvolution_stays_learned(form) -> None:
    model = randomised(Architecture("fcn8s", 4, WIDTH, upsampling="learned"))
    data = caffemodel(model) if form == "caffe" else torch_file(formats.as_written(model))
    found = convert(data, request(form=form), "the file")
    assert found.info.architecture.upsampling == "learned"
    assert_same(found.model, model)


def test_one_weight_beside_the_kernel_makes_all_upsampling_learned(make) -> None:
    state = formats.as_written(make())
    state["upscore2.weight"][0, 1, 0, 0] = 1e-20
    found = convert(torch_file(state), request(form="pytorch-fcn"), "the file")
    assert found.info.architecture.upsampling == "learned"
    assert any("upscore2: not bilinear" in note for note in found.notes)
    assert torch.equal(found.model.state_dict()["upscore2.weight"], state["upscore2.weight"])


def test_deconvolutions_may_be_grouped_or_missing(make) -> None:
    state = formats.as_written(make())
    weight = state["upscore8.weight"]
    state["upscore8.weight"] = weight[range(4), range(4)][:, None]
    del state["upscore2.weight"]
    found = convert(torch_file(state), request(form="pytorch-fcn"), "the file")
    assert_same(found.model, make())


def shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {n: tuple(t.shape) for n, t in FCN(architecture).state_dict().items()}


@pytest.mark.parametrize(
    ("variant", "tensors", "parameters"),
    [
        ("fcn32s", 33, 136_152_917),
        ("fcn16s", 36, 134_815_994),
        ("fcn8s", 39, 134_489_759),
        ("fcn8s-atonce", 39, 134_489_759),
    ],
)
def test_state_dicts_have_the_size_of_pytorch_fcns(variant, tensors, parameters) -> None:
    """Counted on wkentaro/pytorch-fcn's own classes, whose deconvolutions are dense weights."""
    found = shapes(Architecture(variant, 21, upsampling="learned"))
    assert len(found) == tensors
    assert sum(int(np.prod(shape)) for shape in found.values()) == parameters


VGG = "conv1_1 conv1_2 conv2_1 conv2_2 conv3_1 conv3_2 conv3_3 conv4_1 conv4_2 conv4_3 conv5_1 " \
      "conv5_2 conv5_3 fc6 fc7"  # fmt: skip
SIFT = (("sem", 33), ("geo", 3))


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        (("fcn32s", 40), f"{VGG} score_fr upscore"),
        (("fcn16s", 60), f"{VGG} score_fr upscore2 score_pool4 upscore16"),
        (("fcn8s", 21), f"{VGG} score_fr upscore2 score_pool4 upscore_pool4 score_pool3 upscore8"),
        (("fcn-alexnet", 21), "conv1 conv2 conv3 conv4 conv5 fc6 fc7 score_fr upscore"),
        (("fcn32s-color-d", 40), f"{VGG} score_fr upscore".replace("conv1_1", "conv1_1_bgrd")),
        (
            ("fcn32s-color-hha", 40),
            " ".join(f"{n}color {n}hha" for n in f"{VGG} score_fr".split()) + " upscore",
        ),
        (
            ("fcn16s", 33, 1.0, SIFT),
            VGG + " score_fr_S upscore2_S score_pool4_S upscore16_S".replace("_S", "_sem")
            + " score_fr_S upscore2_S score_pool4_S upscore16_S".replace("_S", "_geo"),
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_layers_have_the_names_of_the_released_prototxts(architecture, layers) -> None:
    described = replace(Architecture(*architecture), upsampling="learned")
    assert {name.rpartition(".")[0] for name in shapes(described)} == set(layers.split())


# --- Starting a training --------------------------------------------------------------------------


def classifiers(model: FCN) -> dict[str, tuple[str, bytes]]:
    return {
        "torchvision": ("torchvision", torch_file(vgg16_state(model))),
        "vgg16_from_caffe": ("vgg-caffe-pth", torch_file(vgg16_state(model), legacy=True)),
        "jcjohnson": ("vgg-caffe-pth", torch_file(vgg16_state(model, (1, 4, 6)))),
        "VGG_ILSVRC_16_layers": ("caffe", classifier_caffemodel(model)),
        "V2 caffemodel": ("caffe", classifier_caffemodel(model, "V2", legacy=False)),
    }


@pytest.mark.parametrize("kind", classifiers(FCN(Architecture("fcn32s", 1, 1 / 64))))
@pytest.mark.parametrize("variant", ["fcn32s", "fcn8s"])
def test_a_classifier_becomes_a_trunk_with_zero_scores(make, kind, variant) -> None:
    form, data = classifiers(make("fcn32s"))[kind]
    found = convert(data, request(variant, form), "the file")
    state, trunk = found.model.state_dict(), make("fcn32s").state_dict()
    for name, tensor in state.items():
        if name.startswith("score"):
            assert not tensor.any()
        else:
            assert torch.equal(tensor, trunk[name])
    assert found.info.is_initialisation
    channels = "RGB" if kind == "torchvision" else "BGR"
    assert found.info.preprocessing.channels == channels


def test_a_classifier_in_convolutions_gives_the_classifiers_output(make) -> None:
    """fc6 on a 7x7 map is the classifier's first matrix: both flatten as C, H, W."""
    _, data = classifiers(make("fcn32s"))["torchvision"]
    found = convert(data, request("fcn32s", "torchvision"), "the file").model
    features = torch.randn(1, found.conv5_3.out_channels, 7, 7)
    matrix = vgg16_state(make("fcn32s"))["classifier.0.weight"]
    expected = features.flatten(1) @ matrix.T + found.fc6.bias
    assert torch.allclose(found.fc6(features).flatten(1), expected, rtol=1e-5, atol=1e-5)


def test_the_layout_is_that_of_torchvisions_own_vgg16(make) -> None:
    from torchvision.models import vgg16

    with torch.device("meta"):
        theirs = vgg16().state_dict()
        ours = shapes(Architecture("fcn32s", 1))
    assert list(theirs) == list(vgg16_state(make("fcn32s")))
    for index, layer in VGG16_LAYERS.items():
        assert tuple(theirs[f"features.{index}.weight"].shape) == ours[f"{layer}.weight"]
    assert theirs["classifier.0.weight"].numel() == np.prod(ours["fc6.weight"])


def test_early_fusion_starts_from_vgg_with_the_mean_of_its_colours(make) -> None:
    data = torch_file(vgg16_state(make("fcn32s")))
    found = convert(data, request("fcn32s-color-d", "vgg-caffe-pth"), "the file")
    weight = found.model.state_dict()["conv1_1_bgrd.weight"]
    colour = make("fcn32s").conv1_1.weight
    assert torch.equal(weight[:, :3], colour)
    assert torch.allclose(weight[:, 3], colour.mean(1))
    assert found.info.preprocessing == PREPROCESSINGS["nyud-color-d"]


@pytest.mark.parametrize(
    ("variant", "last"), [("fcn-alexnet", "fc8"), ("fcn-googlenet32s", "loss3/classifier")]
)
@pytest.mark.parametrize("form", ["V1", "V2"])
def test_caffenet_and_googlenet_start_trainings_too(make, variant, last, form) -> None:
    model = make(variant, width=1 / 16)
    data = classifier_caffemodel(model, form, legacy=form == "V1", last=last)
    found = convert(data, request(variant), "the file")
    assert found.info.is_initialisation and last in found.notes[0]
    for name, tensor in found.model.state_dict().items():
        expected = model.state_dict()[name]
        assert torch.equal(tensor, 0 * expected if name.startswith("score") else expected)


def test_a_classifier_starts_a_network_of_two_heads(make) -> None:
    data = classifier_caffemodel(make("fcn32s"))
    found = convert(data, request("fcn16s", labels=(LABELS, GEO)), "the file")
    assert found.info.architecture.heads == (("sem", 4), ("geo", 3))
    assert found.info.other_labels == (GEO,)


def test_masks_of_an_initialisation_are_refused(make) -> None:
    found = convert(classifier_caffemodel(make("fcn32s")), request(), "the file")
    with pytest.raises(WeightsError, match="initial weights for training"):
        Predictor.load(WeightsFile(save_weights(found.model, found.info), "w"))


def test_a_dilated_network_has_the_weights_of_the_coarse_one(make) -> None:
    found = convert(caffemodel(make("fcn32s")), request("fcn32s", output_stride=8), "f")
    assert found.info.architecture == replace(make("fcn32s").architecture, output_stride=8)
    assert_same(WeightsFile(save_weights(found.model, found.info), "w").load(),
                make("fcn32s").with_output_stride(8))  # fmt: skip


def test_what_cannot_be_dilated_is_refused(make) -> None:
    refused(
        caffemodel(make()), request(output_stride=8), "output stride 8 of fcn8s; 32, because only"
    )
    learned = randomised(Architecture("fcn32s", 4, WIDTH, upsampling="learned"))
    refused(caffemodel(learned), request("fcn32s", output_stride=16), "learned upsampling")


# --- What the file says ---------------------------------------------------------------------------


def test_the_mean_is_that_of_voc_unless_something_else_is_known(make) -> None:
    assert convert(caffemodel(make()), request(), "f").info.preprocessing == CAFFE_VOC
    nyud = PREPROCESSINGS["nyud"]
    assert convert(caffemodel(make()), request(preprocessing=nyud), "f").info.preprocessing == nyud
    late = make("fcn32s-color-hha")
    found = convert(caffemodel(late), request("fcn32s-color-hha"), "f").info.preprocessing
    assert found == PREPROCESSINGS["nyud-color-hha"]


def test_equal_sources_give_equal_bytes(make) -> None:
    first, second = (convert(caffemodel(make(), form), request(), "f") for form in ("V1", "V2"))
    assert save_weights(first.model, first.info) == save_weights(second.model, second.info)


def test_the_metadata_names_variant_classes_preprocessing_and_format(make) -> None:
    found = convert(caffemodel(make("fcn8s-atonce")), request("fcn8s-atonce"), "f")
    document = json.loads(found.info.to_metadata()["fcn"])
    assert document["variant"] == "fcn8s-atonce"
    assert document["labels"]["classes"] == list(LABELS.classes)
    assert document["preprocessing"]["channels"] == "BGR"
    assert document["origin"] == {"format": "caffe"}


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["caffe", "pytorch-fcn"])
@pytest.mark.parametrize(
    ("written", "asked"),
    [("fcn32s", "fcn16s"), ("fcn16s", "fcn8s"), ("fcn8s", "fcn32s"), ("fcn8s", "fcn-alexnet")],
)
def test_a_file_of_another_variant_is_named(make, form, written, asked) -> None:
    model = make(written)
    data = caffemodel(model) if form == "caffe" else torch_file(formats.as_written(model))
    refused(data, request(asked, form), f"the layers of {written}.*--variant {asked}")


def test_a_caffemodel_tells_staged_from_at_once(make) -> None:
    atonce, staged = caffemodel(make("fcn8s-atonce")), caffemodel(make("fcn8s"))
    refused(atonce, request("fcn8s"), "an at-once network.*Use --variant fcn8s-atonce")
    refused(staged, request("fcn8s-atonce"), "a staged network.*Use --variant fcn8s,")


@pytest.mark.parametrize(
    ("scale4", "scale3", "found"),
    [
        (1, 1, "as in a staged network.*--variant fcn8s"),
        (0.01, 0.001, "scale_pool3 of 0.001; .*scale_pool3 of 0.0001"),
        ([0.01] * 7 + [0.02], 0.0001, "scale_pool4 of 0.01 to 0.02"),
    ],
)
def test_other_scales_than_the_published_are_refused(make, scale4, scale3, found) -> None:
    scales = {"scale_pool4": scale4, "scale_pool3": scale3}
    data = caffemodel(make("fcn8s-atonce"), scales=scales)
    refused(data, request("fcn8s-atonce"), found)


@pytest.mark.parametrize(("arch", "asked"), [("FCN8s", "fcn8s-atonce"), ("FCN8sAtOnce", "fcn8s")])
def test_a_checkpoint_that_says_its_class_is_believed(make, arch, asked) -> None:
    data = torch_file({"arch": arch, "model_state_dict": formats.as_written(make())})
    refused(data, request(asked, "pytorch-fcn"), f"a checkpoint of pytorch-fcn's {arch};")


def test_another_number_of_classes_is_refused(make) -> None:
    refused(caffemodel(make()), request(labels=(VOC,)), "4 classes; label set 'voc' has 21")


def test_heads_and_label_sets_must_agree_in_number(make) -> None:
    two = randomised(Architecture("fcn32s", 4, WIDTH, (("sem", 4), ("geo", 3))))
    refused(caffemodel(two), request("fcn32s"), "score_fr_sem of 4 classes, score_fr_geo of 3")
    refused(caffemodel(make()), request(labels=(LABELS, GEO)), "score_fr of 4 classes; one label")
    refused(caffemodel(two), request("fcn32s", labels=(LABELS, LABELS)), "for 3 classes")


def without(model: FCN, name: str, value: torch.Tensor | None = None) -> bytes:
    state = formats.as_written(model)
    if value is None:
        del state[name]
    else:
        state[name] = value
    return torch_file(state)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("fc7.bias", None, "tensor fc7.bias is missing"),
        ("fc6.bias", None, "no fc6.bias; the layers of fcn8s.*truncated"),
        ("fc7.bias", torch.full((128,), torch.nan), "fc7.bias holds NaN"),
        ("conv2_1.bias", torch.full((4,), torch.inf), "conv2_1.bias holds NaN or infinity"),
        ("fc7.bias", torch.zeros(3), r"fc7.bias is \(3,\); \(128,\) for fcn8s, width 0.03125"),
        ("upscore2.weight", torch.zeros(4, 4, 8, 8), "upscore2.weight is .*8, 8"),
        ("upscore2.weight", torch.full((4, 4, 4, 4), torch.nan), "upscore2.weight holds NaN"),
        ("norm.weight", torch.zeros(3), "norm.weight is not part of the network"),
        ("upscore16.weight", torch.zeros(4, 4, 32, 32), "upscore16.weight is not part"),
        ("fc7.bias", torch.zeros(128, dtype=torch.int64), "fc7.bias of torch.int64"),
        ("fc7.bias", torch.zeros(128).to_sparse(), "fc7.bias of torch.float32, torch.sparse"),
        ("fc7.bias", "text", "fc7.bias is a str"),
        ("fc6.bias", torch.zeros(10**6), "width 244.141; above 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_wrong_tensor_is_named(make, name, value, found) -> None:
    refused(without(make(), name, value), request(form="pytorch-fcn"), found)


def test_a_caffemodel_with_a_layer_of_another_kind_is_refused(make) -> None:
    good = caffemodel(make())
    bias = formats.blob(np.zeros(4, np.float32))
    for kind, found in (("BatchNorm", "'x' of type BatchNorm"), ("Scale", "'x' of type Scale")):
        refused(good + formats.layer("V2", "x", kind, [bias, bias]), request(), found)
    unknown = good + formats.layer("V2", "score_extra", "Convolution", [bias, bias])
    refused(unknown, request(), "score_extra.bias is not part of the network")
    scale = good + formats.layer("V2", "scale_x", "Scale", [bias])
    refused(scale, request(), "scale_x of 0.*at-once")
    refused(formats.net(formats.layer("V1", "x", "MVN", [bias])), request(), "type MVN")
    empty = good + formats.layer("V2", "scale_x", "Scale", [formats.blob(np.zeros(0))])
    refused(empty, request(), "layer 'scale_x' with an empty blob")
    refused(
        classifier_caffemodel(make("fcn32s")) + scale[len(good) :], request(), "a classifier with"
    )


def test_a_caffemodel_cut_between_two_layers_misses_one(make) -> None:
    data = caffemodel(make())
    cut = data.index(b"score_pool3") - 4
    while True:  # back to the tag of the layer
        try:
            refused(data[:cut], request(), "the layers of fcn16s|is missing")
            break
        except AssertionError:
            cut -= 1


def test_a_caffemodel_that_lost_its_scores_is_no_initialisation(make) -> None:
    state = {n: t for n, t in formats.as_written(make("fcn32s")).items() if "score" not in n}
    refused(torch_file(state), request("fcn32s", "pytorch-fcn"), "neither score layers.*truncated")


@pytest.mark.parametrize("form", ["caffe", "pytorch-fcn", "torchvision"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_file_is_refused(make, form, share, legacy) -> None:
    if form == "caffe":
        data = caffemodel(make("fcn32s"))
    elif form == "pytorch-fcn":
        data = torch_file(formats.as_written(make("fcn32s")), legacy=legacy)
    else:
        data = torch_file(vgg16_state(make("fcn32s")), legacy=legacy)
    cut = data[: int(share * len(data))]
    refused(cut, request("fcn32s", form), f"{len(cut)} bytes that")


@pytest.mark.parametrize(
    ("data", "form", "found"),
    [
        (b"\x89HDF\r\n", "caffe", "an HDF5 file"),
        (b"<!DOCTYPE html>", "pytorch-fcn", "a web page"),
        (b"<!DOCTYPE html>", "caffe", "a web page"),
        (b'name: "VGG"', "caffe", "a prototxt"),
        (torch_file({"a": torch.ones(1)}), "caffe", "a file of torch.*--from pytorch-fcn"),
        (formats.net(), "pytorch-fcn", "perhaps a caffemodel.*--from caffe"),
        (formats.net(), "torchvision", "perhaps a caffemodel"),
        (torch_file([1, 2]), "pytorch-fcn", "a list that is empty or not a state dict"),
        (torch_file({}), "pytorch-fcn", "empty"),
        (torch_file({"model_state_dict": 3}), "pytorch-fcn", "model_state_dict is a int"),
        (torch_file({"layer1.0.conv1.weight": torch.ones(1)}), "pytorch-fcn", "no first layer"),
        (torch_file({"a.weight": torch.ones(1)}), "torchvision", "not an image classifier"),
        (b"", "caffe", "0 layers"),
        (b"", "pytorch-fcn", "0 bytes"),
    ],
)
def test_another_kind_of_file_is_named(data, form, found) -> None:
    refused(data, request(form=form), found)


def test_our_own_file_needs_no_conversion(make) -> None:
    info = WeightsInfo(make().architecture, LABELS, CAFFE_VOC)
    for form in ("caffe", "pytorch-fcn"):
        refused(save_weights(make(), info), request(form=form), "a safetensors file.*no conversion")


@settings(deadline=None, max_examples=60)
@given(st.booleans(), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1))
def test_a_damaged_state_dict_is_read_or_refused_but_never_another_error(legacy, damage) -> None:
    data = bytearray(SMALL[legacy])
    for place, value in damage:
        data[int(place * (len(data) - 1))] = value
    for form in ("pytorch-fcn", "torchvision"):
        with pytest.raises(WeightsError):  # it is no network in any case
            convert(bytes(data), request(form=form), "the file")


SMALL = {legacy: torch_file({"score_fr.bias": torch.ones(3)}, legacy=legacy)
         for legacy in (False, True)}  # fmt: skip


class Unsafe:
    """What an attacker would pickle; this one leaves a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_an_unsafe_pickle_is_refused_and_does_not_run(make, tmp_path, legacy) -> None:
    state = formats.as_written(make()) | {"extra": Unsafe(tmp_path / "harm")}
    refused(torch_file(state, legacy=legacy), request(form="pytorch-fcn"),
            r"a pickle that calls (io|_io)\.open; .*weights_only=False")  # fmt: skip
    assert not (tmp_path / "harm").exists()


def test_a_pickled_network_is_refused_with_the_way_out(make) -> None:
    refused(torch_file(torch.nn.Conv2d(1, 1, 1)), request(form="pytorch-fcn"),
            r"calls torch.nn.modules.conv.Conv2d.*state_dict\(\), NEW")  # fmt: skip


def test_formats_of_torch_are_not_mistaken_for_each_other(make) -> None:
    classifier = torch_file(vgg16_state(make("fcn32s")))
    fcn = torch_file(formats.as_written(make("fcn32s")))
    refused(classifier, request("fcn32s", "pytorch-fcn"), "--from torchvision or vgg-caffe-pth")
    refused(fcn, request("fcn32s", "torchvision"), "Use --from pytorch-fcn")
    refused(
        classifier_caffemodel(make("fcn32s")), request("fcn-alexnet"), "a classifier for fcn32s or"
    )


def vgg(make, **changes) -> bytes:
    state = vgg16_state(make("fcn32s")) | {k.replace("__", "."): v for k, v in changes.items()}
    return torch_file({name: tensor for name, tensor in state.items() if tensor is not None})


def test_vgg_without_a_classifier_is_refused_by_name(make) -> None:
    state = vgg16_state(make("fcn32s"))
    nan = {name: torch.full_like(t, torch.nan) for name, t in state.items() if "classifier" in name}
    none = {name: tensor for name, tensor in state.items() if "features" in name}
    for damaged, found in ((state | nan, "classifier is NaN"), (none, "without classifier")):
        refused(torch_file(damaged), request("fcn32s", "torchvision"), f"{found}.*amdegroot")


def test_other_classifiers_than_vgg16_are_refused(make) -> None:
    state = vgg16_state(make("fcn32s"))
    vgg19 = state | {"features.30.weight": torch.ones(2), "features.30.bias": torch.ones(2)}
    vgg13 = {name: tensor for name, tensor in state.items() if not name.startswith("features.28")}
    for other, found in ((vgg19, "unknown features.30.bias"), (vgg13, "missing features.28.bias")):
        refused(torch_file(other), request("fcn32s", "torchvision"), f"not VGG-16: .*{found}")


def test_preprocessing_of_other_channels_is_refused(make) -> None:
    wanted = replace(request(), preprocessing=PREPROCESSINGS["nyud-color-d"])
    refused(caffemodel(make()), wanted, "preprocessing of 4 channels; fcn8s reads 3")
