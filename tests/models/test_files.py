"""Model files in ComfyUI's folder: where each belongs, whether there is room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagen.errors import FileFault, Refused
from imagen.models import files
from imagen.models.files import look, readable
from imagen.workflows.template import Model


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (335_304_388, "335 MB"),
        (999_500_000, "1.0 GB"),
        (23_782_506_688, "23.8 GB"),
        (10**15, "1000.0 TB"),
    ],
)
def test_sizes_are_readable(size, text):
    assert readable(size) == text


@pytest.mark.parametrize("folder", ["diffusion_models", "unet"])
@pytest.mark.parametrize("there", ["diffusion_models", "unet"])
def test_a_folder_may_have_its_older_or_its_newer_name(tmp_path, folder, there):
    (tmp_path / there / "flux").mkdir(parents=True)
    (tmp_path / there / "flux" / "a.pt").write_bytes(b"1234")
    found = look(tmp_path, Model("a.pt", f"{folder}/flux", size=4))
    assert found == ("present", tmp_path / there / "flux" / "a.pt", 4)


def test_a_file_named_as_a_windows_server_names_it_is_looked_for_in_its_folder(tmp_path):
    (tmp_path / "checkpoints" / "SDXL").mkdir(parents=True)
    (tmp_path / "checkpoints" / "SDXL" / "a.pt").write_bytes(b"1234")
    found = look(tmp_path, Model("SDXL\\a.pt", "checkpoints", size=4))
    assert found == ("present", tmp_path / "checkpoints" / "SDXL" / "a.pt", 4)


@pytest.mark.parametrize(
    "file", ["..\\a.pt", "SDXL\\..\\..\\..\\a.pt", "\\a.pt", "SDXL\\", "C:\\a.pt"]
)
def test_a_backslash_leads_out_of_no_folder(tmp_path, file):
    try:
        place = look(tmp_path, Model(file, "checkpoints"))
    except Refused as fault:
        assert fault.code == "no_source"
        return
    assert place.path.is_relative_to(tmp_path / "checkpoints")
    assert ".." not in place.path.parts


def test_of_two_files_of_that_name_the_one_of_the_right_size_is_it(tmp_path):
    for folder, data in {"unet": b"1234", "diffusion_models": b"123"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.pt").write_bytes(data)
    assert look(tmp_path, Model("a.pt", "diffusion_models", size=4)).state == "present"
    assert look(tmp_path, Model("a.pt", "diffusion_models", size=5)).state == "wrong size"


def test_a_file_whose_size_nobody_knows_is_present(tmp_path):
    (tmp_path / "a.pt").touch()
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "a.pt").symlink_to(tmp_path / "a.pt")
    assert look(tmp_path, Model("a.pt", "vae")).state == "present"


def test_what_is_no_file_is_in_the_way(tmp_path):
    (tmp_path / "vae" / "a.pt").mkdir(parents=True)
    place = look(tmp_path, Model("a.pt", "vae"))
    assert place.state == "wrong size"
    assert "no file stands at" in files.in_the_way(place, Model("a.pt", "vae")).message


@given(st.text(alphabet="ab./\\\n ~", max_size=12), st.text(alphabet="ab./\\", max_size=8))
def test_whatever_it_is_called_it_stays_in_its_folder(tmp_path_factory, file, folder):
    root = tmp_path_factory.getbasetemp() / "models"
    try:
        place = look(root, Model(file, folder))
    except Refused as fault:
        assert fault.code == "no_source"
        return
    assert place.path.resolve().is_relative_to(root.resolve() / folder.split("/")[0])
    assert not any(part.startswith(".") for part in place.path.relative_to(root).parts)


def test_room_is_counted_over_all_files_of_a_file_system(tmp_path):
    free = files.shutil.disk_usage(tmp_path).free
    most = free * 2 // 3
    files.check_room([(tmp_path / "deep" / "a", most)])
    with pytest.raises(FileFault, match="no room in"):
        files.check_room([(tmp_path / "deep" / "a", most), (tmp_path / "b", most)])
