"""Geometry: against probeinterface, against MNE's template, and by its own symmetries."""

from __future__ import annotations

import json
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf_research.core import InputError
from nbmf_research.neural import probes as P

ALL = [P.utah_array(), P.ecog_grid(4, 8), P.linear_probe(7), P.neuropixels(), P.tetrode(), P.eeg_1020(P.TEN_TEN)]


@pytest.mark.parametrize("probe", ALL, ids=lambda p: p.kind)
def test_every_probe_is_well_formed(probe):
    assert probe.xyz.shape == (len(probe), 3) and probe.xyz.dtype == np.float64 and np.isfinite(probe.xyz).all()
    assert len(set(probe.channels)) == len(probe) == len(probe.shanks)
    d = P.distances(probe.xyz)
    assert (d[~np.eye(len(d), dtype=bool)] > 0).all(), "two contacts in one place"
    with pytest.raises(ValueError, match="read-only"):
        probe.xyz[0] = 1.0


def test_sizes():
    assert len(P.utah_array()) == 96 and len(P.utah_array(5, 6, 300)) == 26
    assert P.distances(P.utah_array().xyz)[0, 1] == 400 and P.distances(P.ecog_grid(2, 2).xyz)[0, 1] == 10_000
    assert P.linear_probe(3, 20).xyz[:, 1].tolist() == [0, 20, 40]
    assert np.ptp(P.tetrode(30).xyz, axis=0).tolist() == [30, 30, 0]


def test_neuropixels_agrees_with_probeinterface():
    pi = pytest.importorskip("probeinterface")
    theirs = pi.neuropixels_tools.build_neuropixels_probe("NP1010").contact_positions
    ours = P.neuropixels(960).xyz[:, :2]
    assert ours.shape == theirs.shape and np.allclose(ours, theirs)


def _aligned_error(ours, theirs):
    """Distances after the best shift, rotation and scale of ours onto theirs."""
    a, b = ours - ours.mean(0), theirs - theirs.mean(0)
    u, s, v = np.linalg.svd(a.T @ b)
    return np.linalg.norm(s.sum() / (a**2).sum() * a @ u @ v - b, axis=1)


def test_scalp_positions_near_mne_template():
    """All 10-05 names of MNE's realistic template (without ears and mastoids): 8 mm RMS, 16 mm at most after alignment."""
    mne = pytest.importorskip("mne")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            template = mne.channels.make_standard_montage("standard_1005")
        except ValueError:
            template = mne.channels.make_standard_montage("colin27_1005")
    where = template.get_positions()["ch_pos"]
    names = [n for n in template.ch_names if n not in ("A1", "A2", "M1", "M2")]
    ours = P.eeg_1020(names)
    assert np.isfinite(ours.xyz).all() and len(names) > 330
    error = _aligned_error(ours.xyz / 1e3, np.array([where[n] for n in names]) * 1e3)
    assert np.sqrt((error**2).mean()) < 8.5 and error.max() < 17
    core = [n for n in P.TEN_TEN if n not in ("T9", "T10", "Iz")]
    error = _aligned_error(P.eeg_1020(core).xyz / 1e3, np.array([where[n] for n in core]) * 1e3)
    assert np.sqrt((error**2).mean()) < 7.5


def test_scalp_grammar():
    p = P.eeg_1020(["F3", "F4", "f3", "EEG F3", "F3..", "T3", "T7", "M2", "TP10", "Nz", "AFF5h", "EEG Cz-REF"])
    at = dict(zip(p.channels, p.xyz, strict=True))
    assert np.allclose(at["F3"], at["f3"]) and np.allclose(at["F3"], at["EEG F3"]) and np.allclose(at["F3"], at["F3.."])
    assert (
        np.allclose(at["F3"] * [-1, 1, 1], at["F4"])
        and np.allclose(at["T3"], at["T7"])
        and np.allclose(at["M2"], at["TP10"])
    )
    assert at["Nz"][2] < 0 < at["F3"][1] and np.allclose(at["EEG Cz-REF"], [0, 0, P.HEAD_RADIUS])
    half = P.eeg_1020(["F1", "F1h", "Fz", "F3h", "F3"]).xyz
    steps = np.linalg.norm(np.diff(half, axis=0), axis=1)
    assert np.allclose(steps[:2], steps[0]) and np.allclose(np.linalg.norm(half, axis=1), P.HEAD_RADIUS)


def test_unknown_names_are_nan_and_named():
    with pytest.warns(UserWarning, match="ECG, A2-A1") as seen:
        p = P.eeg_1020(["Cz", "ECG", "A2-A1"])
    assert len(seen) == 1 and np.isnan(p.xyz[1:]).all() and np.isfinite(p.xyz[0]).all()
    assert P.neighbours(p.xyz, 1).ravel().tolist() == [-1, -1, -1]
    assert np.isnan(P.distances(p.xyz)[0, 1])


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**31), st.data())
def test_neighbours_against_brute_force(n, seed, data):
    xyz = np.random.default_rng(seed).normal(size=(n, 3)) * 100
    k = data.draw(st.integers(1, n - 1))
    found = P.neighbours(xyz, k)
    for i in range(n):
        others = sorted((np.linalg.norm(xyz[i] - xyz[j]), j) for j in range(n) if j != i)
        assert np.allclose([np.linalg.norm(xyz[i] - xyz[j]) for j in found[i]], [d for d, _ in others[:k]])
        assert i not in found[i]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**31))
def test_distances_are_a_metric(n, seed):
    d = P.distances(np.random.default_rng(seed).normal(size=(n, 3)))
    assert (d == d.T).all() and (np.diag(d) == 0).all()
    assert (d[:, :, None] <= d[:, None, :] + d.T[None] + 1e-12).all()


@pytest.mark.parametrize("probe", ALL, ids=lambda p: p.kind)
def test_probeinterface_round_trip(probe, tmp_path):
    pi = pytest.importorskip("probeinterface")
    path = tmp_path / "probe.json"
    path.write_text(json.dumps(P.to_probeinterface_dict(probe)))
    group = pi.read_probeinterface(path)
    assert np.allclose(group.probes[0].contact_positions, probe.xyz) and list(group.probes[0].contact_ids) == list(
        probe.channels
    )
    for source in (group, group.probes[0], path.read_text(), json.loads(path.read_text())):
        back = P.from_probeinterface(source)
        assert (back.xyz == probe.xyz).all() and back.channels == probe.channels
        assert (back.shanks == probe.shanks).all() and back.radius == probe.radius
        assert (back.name, back.kind) == (probe.name, probe.kind)


def test_probeinterface_wiring_units_and_shanks():
    pi = pytest.importorskip("probeinterface")
    one = pi.generate_multi_shank(num_shank=2, num_columns=1, num_contact_per_column=3)
    one.set_device_channel_indices([5, 4, 3, 2, -1, 0])
    ours = P.from_probeinterface(one)
    assert len(ours) == 5 and np.allclose(ours.xyz[0, :2], one.contact_positions[5])
    assert np.allclose(ours.xyz[-1, :2], one.contact_positions[0]) and ours.shanks.tolist() == [1, 1, 0, 0, 0]
    group = pi.ProbeGroup()
    for x in (0.0, 500.0):
        tet = pi.generate_tetrode()
        tet.move([x, 0.0])
        group.add_probe(tet)
    both = P.from_probeinterface(group)
    assert len(both) == 8 and both.shanks.tolist() == [0] * 4 + [1] * 4 and len(set(both.channels)) == 8
    metres = {"contact_positions": [[0, 0], [0, 1e-3]], "si_units": "m", "contact_shape_params": [{"radius": 1e-5}] * 2}
    assert P.from_probeinterface(metres).xyz[1, 1] == 1000 and P.from_probeinterface(metres).radius == pytest.approx(10)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: P.Probe("p", np.zeros((3, 3)), ("a",)), "3 contacts"),
        (lambda: P.Probe("p", np.zeros((2, 3)), ("a", "a")), "more than once"),
        (lambda: P.Probe("p", np.zeros((2, 4))), "shape"),
        (lambda: P.Probe("p", np.array([[np.inf, 0, 0]])), "infinite"),
        (lambda: P.Probe("p", np.zeros((2, 3)), shanks=np.zeros(3, int)), "shank"),
        (lambda: P.utah_array(2, 10), "at least 3"),
        (lambda: P.ecog_grid(0, 4), "rows"),
        (lambda: P.linear_probe(4, 0), "pitch"),
        (lambda: P.neuropixels(0), "960"),
        (lambda: P.neighbours(np.zeros((3, 3)), 3), "at most 2"),
        (lambda: P.from_probeinterface([1, 2]), "probeinterface"),
        (lambda: P.from_probeinterface({"probes": []}), "probeinterface"),
        (lambda: P.from_probeinterface({"contact_positions": [[0, 0]], "si_units": "inch"}), "inch"),
        (lambda: P.from_probeinterface({"contact_positions": [[0, 0]], "device_channel_indices": [-1]}), "wired"),
        (lambda: P.to_probeinterface_dict(P.Probe("p", np.full((1, 3), np.nan), ("ECG",))), "ECG"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(InputError, match=word):
        call()


@pytest.mark.parametrize("probe", ALL, ids=lambda p: p.kind)
def test_plot(probe):
    ax = P.plot_probe(probe)
    assert len(ax.collections[0].get_offsets()) == len(probe) and ax.get_xlabel()
    P.plot_probe(probe, np.arange(len(probe)), ax)
    plt.close("all")
