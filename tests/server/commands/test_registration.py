"""Keys that Flower does not take: what `server register` and `server start` say."""

from pathlib import Path

import pytest

from common.errors import UserError
from common.flower.processes import environment
from server.commands.connections import register_keys


def test_file_without_a_key_is_named_with_its_device(tmp_path: Path) -> None:
    file = tmp_path / "cam.pub"
    file.write_text("nonsense")
    with pytest.raises(UserError, match=rf"not all device keys were registered: {file} holds no public key of cam "):
        register_keys({"cam": file}, "there", environment(tmp_path))
    with pytest.raises(UserError, match=r"not all device keys were registered: .*absent\.pub.* does not exist"):
        register_keys({"cam": tmp_path / "absent.pub"}, "there", environment(tmp_path))
