"""Archives whose members would leave their folder, with and without the filter of newer Pythons."""

import io
import tarfile

import pytest

from deploy.unpacking import unpack


@pytest.fixture(params=["filter", "by hand"], autouse=True)
def python(request, monkeypatch):
    """This Python, and one that is as 3.11.2: no filters, and no argument for one."""
    if request.param == "by hand":
        whole = tarfile.TarFile.extractall

        def extractall(self, path=".", members=None, *, numeric_owner=False):
            whole(self, path, members, numeric_owner=numeric_owner)

        monkeypatch.delattr(tarfile, "data_filter")
        monkeypatch.setattr(tarfile.TarFile, "extractall", extractall)
    return request.param


def packed(*members):
    """An archive of (name, type, link or content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, kind, told in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.uid, member.uname = kind, 0o4777, 0, "nobody"
            if kind == tarfile.REGTYPE:
                member.size = len(told)
                archive.addfile(member, io.BytesIO(told.encode()))
            else:
                member.linkname = told
                archive.addfile(member)
    file.seek(0)
    return tarfile.open(fileobj=file)


def test_files_and_folders_come_without_the_rights_of_others(tmp_path):
    with packed(("m", tarfile.DIRTYPE, ""), ("m/1/w", tarfile.REGTYPE, "weights"), ("m/2", tarfile.LNKTYPE, "m/1/w")) as archive:
        unpack(archive, tmp_path / "out")

    assert (tmp_path / "out" / "m" / "1" / "w").read_text() == (tmp_path / "out" / "m" / "2").read_text() == "weights"
    assert oct((tmp_path / "out" / "m" / "1" / "w").stat().st_mode & 0o7777) == "0o755"
    assert (tmp_path / "out" / "m" / "1" / "w").stat().st_uid == tmp_path.stat().st_uid


@pytest.mark.parametrize(
    "members",
    [
        [("../outside", tarfile.REGTYPE, "x")],
        [("m/../../outside", tarfile.REGTYPE, "x")],
        [("m", tarfile.SYMTYPE, ".."), ("m/outside", tarfile.REGTYPE, "x")],
        [("m", tarfile.SYMTYPE, "/"), ("m/w", tarfile.REGTYPE, "x")],
        [("w", tarfile.LNKTYPE, "../secret")],
        [("m/pipe", tarfile.FIFOTYPE, "")],
        [("m/disk", tarfile.BLKTYPE, "")],
    ],
)
def test_what_would_leave_its_folder_or_is_no_file_is_refused(tmp_path, members):
    (tmp_path / "secret").write_text("s")
    with pytest.raises(tarfile.TarError), packed(*members) as archive:
        unpack(archive, tmp_path / "out")

    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "out" / "w").exists()


def test_an_absolute_name_lands_nowhere_else(tmp_path, python):
    """The filter takes the leading slash away; by hand it is refused."""
    with packed((f"{tmp_path}/outside", tarfile.REGTYPE, "x")) as archive:
        if python == "by hand":
            with pytest.raises(tarfile.TarError, match="would lie outside"):
                unpack(archive, tmp_path / "out")
        else:
            unpack(archive, tmp_path / "out")

    assert not (tmp_path / "outside").exists()
