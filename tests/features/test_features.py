"""Extractors from a file on disk and uint8 images to features, as the reference tools give them."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from diffusion_jax import registry
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.features import networks as features
from diffusion_jax.features.classifier import TrainedClassifier
from diffusion_jax.features.extractor import Extractor, check_images
from diffusion_jax.features.networks import small
from diffusion_jax.features.resizing import preprocessing
from diffusion_jax.models import small_classifier
from diffusion_jax.models.inception import inception_v3
from diffusion_jax.models.vision_transformer import vision_transformer
from tests.peers import arrays, fid_inception, peer, relative, shaken

TOLERANCE = 1e-4


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def classifier(size=8, channels=1):
    network = small_classifier(size, channels, 10, features=16)
    params = network.init(jax.random.key(0))
    params["logits"]["bias"] = np.linspace(-1, 1, 10, dtype=np.float32)
    return TrainedClassifier(network, params)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """(a file of random weights in pytorch-fid's names, the network they came from)."""
    torch = peer("torch")
    with pytest.MonkeyPatch.context() as patch:
        network = fid_inception(patch)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path, network


def test_inception_is_torch_fidelitys(inception_file, caplog):
    """From uint8 of another size to pool_3 and the logits without bias, the resize of TensorFlow 1 included."""
    module, torch = peer("torch_fidelity.feature_extractor_inceptionv3"), peer("torch")
    path, _ = inception_file
    theirs = module.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
    x = images(2, 40, 32, 3)
    pool, logits = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    extractor = registry.build("features", {"name": "inception", "weights": str(path), "chunk": 1})
    assert "is not the published file of inception (6726825d...)" in caplog.text
    ours = extractor(x)
    assert {name: rows.shape for name, rows in ours.items()} == {name: (2, dim) for name, dim in extractor.dims.items()}
    assert relative(ours["pool"], pool) < TOLERANCE
    assert relative(ours["logits_unbiased"], logits) < TOLERANCE


@pytest.mark.slow  # Inception-v3 compiled for each
def test_the_other_preprocessings_of_inception(inception_file):
    """pytorch-fid's own network with its resize, and the same network behind clean-fid's."""
    torch, resizer = peer("torch"), peer("cleanfid.resize").build_resizer("clean")
    path, network = inception_file
    x = images(2, 40, 32, 3)
    halves = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2) / np.float32(255)), (299, 299), mode="bilinear"
    )
    clean = np.stack([(resizer(image) - 128) / 128 for image in x]).transpose(0, 3, 1, 2)
    apply, identities = jax.jit(inception_v3().apply), []
    for name, given in (("pytorch-fid", 2 * halves - 1), ("clean-fid", torch.from_numpy(np.ascontiguousarray(clean)))):
        kept = {}
        handle = network.avgpool.register_forward_hook(lambda module, given, out, kept=kept: kept.update(pool=out.flatten(1)))
        with torch.no_grad():
            network(given)
        handle.remove()
        extractor = features.inception(path, preprocessing=name)
        assert relative(apply(extractor.params, extractor.preprocessing(x))["pool"], kept["pool"]) < TOLERANCE
        identities.append(extractor.identity())
    assert identities[0]["checksum"] == identities[1]["checksum"]
    assert identities[0] != identities[1]


@pytest.fixture(scope="module")
def tiny():
    """An extractor of a tiny vision transformer with random weights."""
    network = vision_transformer(16, patch=8, width=32, depth=1, heads=2, mlp=64, grid=2)
    params = network.init(jax.random.key(0))
    return Extractor("tiny", preprocessing("clip", 16), "0" * 64, network.dims(), network.apply, params, chunk=2)


def test_a_batch_gives_what_its_images_give_alone(tiny):
    """To the last bit: the batch is split over eight devices, two images each at a time, whatever their number."""
    assert jax.local_device_count() == 8
    x = images(40, 20, 24, 3)
    whole = tiny(x)["pool"]
    assert whole.shape == (40, 32) and whole.dtype == np.float32
    full = tiny(x[:16])["pool"]
    assert len(full.sharding.device_set) == 8 and full.addressable_shards[0].data.shape[0] == 2
    for count in (1, 7, 16, 23):
        np.testing.assert_array_equal(tiny(x[:count])["pool"], whole[:count])


def test_one_device_gives_the_same_to_the_last_bit(tiny):
    x = images(16, 20, 24, 3)
    alone = dataclasses.replace(tiny)
    alone.__dict__["_mesh"] = Mesh(np.array(jax.local_devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
    found = alone(x)["pool"]
    assert len(found.sharding.device_set) == 1
    np.testing.assert_array_equal(found, tiny(x)["pool"])


def test_one_program_for_any_number_of_images(tiny):
    x = images(56, 20, 24, 3)
    tiny(x[:16])
    before = tiny._compiled._cache_size()
    for count in (3, 16, 56):
        tiny(x[:count])
    assert tiny._compiled._cache_size() == before


def test_grey_images_are_repeated(tiny):
    grey = images(3, 16, 16, 1)
    np.testing.assert_array_equal(tiny(grey)["pool"], tiny(np.repeat(grey, 3, axis=-1))["pool"])


def test_identity_is_json(tiny):
    expected = {"network": "tiny", "preprocessing": "clip", "checksum": "0" * 64}
    assert json.loads(json.dumps(tiny.identity())) == expected


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 8, 8, 4), np.uint8), "alpha channel.*composite"),
        (np.zeros((2, 8, 8, 2), np.uint8), "alpha channel"),
        (np.zeros((2, 8, 8, 3), np.float32), "must be uint8 in 0..255, got float32: round them"),
        (np.full((2, 8, 8, 3), np.nan), "got float64: some of it is NaN"),
        (np.zeros((2, 8, 8, 3), np.int64), "got int64"),
        (np.zeros((8, 8, 3), np.uint8), r"\[N, H, W, C\].*\(8, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"none of them 0"),
        (np.zeros((2, 3, 8, 8), np.uint8), "1 or 3 channels at the end"),
    ],
)
def test_bad_images(tiny, bad, message):
    for function in (check_images, tiny):
        with pytest.raises(DataError, match=message):
            function(bad)


@pytest.mark.slow
def test_small_networks_are_extractors():
    """What the classifier itself says of the same images, less the bias of its logits."""
    trained = classifier()
    extractor = registry.build("features", {"name": "small", "classifier": trained})
    x = images(5, 8, 8, 1)
    logits, vectors = trained.network.apply(trained.params, x / np.float32(127.5) - 1)
    found = extractor(x)
    assert extractor.dims == {"pool": 16, "logits_unbiased": 10}
    np.testing.assert_allclose(found["pool"], vectors, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["logits_unbiased"] + np.linspace(-1, 1, 10), logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="small takes images of 1 channel"):
        extractor(images(5, 8, 8, 3))
    with pytest.raises(DataError, match=r"small takes images of 8x8 pixels, got the shape \(5, 9, 8, 1\)"):
        extractor(images(5, 9, 8, 1))


def test_the_checksum_of_a_small_network_is_that_of_its_parameters():
    first, again, other = classifier(), classifier(), classifier()
    other.params["logits"]["bias"] = other.params["logits"]["bias"] + np.float32(1e-6)
    sums = [small(trained).identity()["checksum"] for trained in (first, again, other)]
    assert sums[0] == sums[1] != sums[2]
    assert re.fullmatch("[0-9a-f]{64}", sums[0])


def tiny_file(monkeypatch, tmp_path):
    """DINOv2's extractor, its network exchanged for a tiny one, and weights of that as safetensors."""
    transformers = peer("transformers")
    config = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
    tensors = arrays(shaken(transformers.Dinov2Model(config), seed=0))
    path = tmp_path / "tiny.safetensors"
    peer("safetensors.numpy").save_file(tensors, path)
    network = vision_transformer(16, patch=8, width=32, depth=1, heads=2, mlp=128, grid=2, layer_scale=True)
    monkeypatch.setattr(features, "dinov2", lambda variant: network)
    return path


def test_built_by_name_with_a_checksum(monkeypatch, tmp_path):
    path = tiny_file(monkeypatch, tmp_path)
    extractor = registry.build("features", {"name": "dinov2", "weights": str(path), "preprocessing": "dinov2-float"})
    identity = extractor.identity()
    assert identity["network"] == "dinov2/vit_l14" and identity["preprocessing"] == "dinov2-float"
    again = registry.build("features", {"name": "dinov2", "weights": str(path), "sha256": identity["checksum"]})
    x = images(2, 16, 16, 3)
    np.testing.assert_allclose(again(x)["pool"], extractor(x)["pool"], rtol=1e-3, atol=1e-4)  # no resize at this size
    with pytest.raises(DataError, match="sha256 says the checksum begins with 00000000"):
        registry.build("features", {"name": "dinov2", "weights": str(path), "sha256": "00000000"})
    with pytest.raises(DataError, match="tiny.safetensors: these are not the weights of this network"):
        registry.build("features", {"name": "vgg16", "weights": str(path)})


def test_bad_settings(tmp_path):
    with pytest.raises(DataError, match="no weight file .*nothing is downloaded"):
        registry.build("features", {"name": "inception", "weights": str(tmp_path / "none.pth")})
    with pytest.raises(
        ConfigError, match="'inception' cannot have the preprocessing 'clip' .it has: tf1, pytorch-fid, clean-fid"
    ):
        registry.build("features", {"name": "inception", "weights": "x.pth", "preprocessing": "clip"})
    with pytest.raises(ConfigError, match="preprocessing: unknown 'tf2'; did you mean 'tf1'"):
        registry.build("features", {"name": "inception", "weights": "x.pth", "preprocessing": "tf2"})
    with pytest.raises(ConfigError, match="needs the field 'weights'"):
        registry.build("features", "inception")
    with pytest.raises(ConfigError, match="variant: unknown .vit_h14."):
        registry.build("features", {"name": "clip", "weights": "x.pth", "variant": "vit_h14"})
