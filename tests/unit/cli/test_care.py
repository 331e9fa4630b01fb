"""serve, config, store, audit, backup, restore."""

from __future__ import annotations

from typing import NamedTuple

from tests.unit.cli.product import Desk, Refusal


class Holding(NamedTuple):
    """Somebody holds the store."""

    pid: int = 4242
    address: str = ""


def test_serve_runs_with_flags_over_the_file(desk: Desk) -> None:
    (desk.directory / "kelpie.toml").write_text("[server]\nport = 1\nhost = '127.0.0.2'\n")
    assert desk.type("serve", "--port", "9001", "--data-dir", "d").status == 0
    settings = desk.served[0]
    assert (settings.server.host, settings.server.port) == ("127.0.0.2", 9001)
    assert settings.data_dir == desk.directory / "d"


def test_serve_refuses_an_open_address_without_a_key(desk: Desk) -> None:
    outcome = desk.type("serve", "--host", "0.0.0.0", "--json")
    assert outcome.status == 2
    assert outcome.error()["fields"]["field"] == "server.host"
    assert desk.served == []
    desk.environment["KELPIE_API_KEY"] = "k"
    assert desk.type("serve", "--host", "0.0.0.0").status == 0


def test_serve_says_which_variables_it_ignores(desk: Desk) -> None:
    desk.environment["KELPIE_SERVER_PROT"] = "1"
    assert "the nearest is KELPIE_SERVER_PORT" in desk.type("serve").stderr


def test_a_wrong_setting_names_file_line_and_nearest_key(desk: Desk) -> None:
    (desk.directory / "kelpie.toml").write_text("[server]\nprot = 1\n")
    outcome = desk.type("config", "show")
    assert outcome.status == 2
    expected = "kelpie.toml:2: server.prot is not a setting; did you mean server.port?"
    assert expected in outcome.stderr


def test_config_shows_toml_origins_and_json_without_secrets(desk: Desk) -> None:
    desk.environment |= {"OPENAI_API_KEY": "sk-live", "KELPIE_LOG": "debug"}
    text = desk.type("config", "show")
    assert 'api_key = "env:OPENAI_API_KEY"' in text.stdout
    table = desk.type("config", "show", "--origin").stdout
    assert any(
        line.split()[0] == "log.level" and line.endswith("environment KELPIE_LOG")
        for line in table.splitlines()
    )
    values = desk.type("config", "show", "--origin", "--json").json()
    assert values["server.port"] == {"value": 8283, "origin": "default"}
    assert desk.type("config", "show", "--json").json()["log.level"] == "debug"
    assert "sk-live" not in text.stdout + table


def test_the_printed_settings_are_a_settings_file(desk: Desk) -> None:
    first = desk.type("config", "show").stdout
    (desk.directory / "copy.toml").write_text(first)
    assert desk.type("config", "show", "--config", "copy.toml").stdout == first


def test_store_commands_print_what_the_store_says(desk: Desk) -> None:
    routes = desk.product.routes
    routes["GET", "/v1/store/stats"] = {"actors": 3, "held": False}
    routes["POST", "/v1/store/release"] = {"held": False}
    routes["POST", "/v1/store/check"] = {"ok": False, "problems": ["page 3"]}
    assert desk.type("store", "stats").stdout == "actors  3\nheld    false\n"
    assert desk.type("store", "stats", "--json").json() == {"actors": 3, "held": False}
    assert desk.type("store", "release").stderr == "The store is released.\n"
    assert desk.type("store", "release", "--json").json() == {"held": False}
    routes["POST", "/v1/store/compact"] = {
        "before_bytes": 9_000,
        "after_bytes": 4_096,
        "blobs_removed": 3,
        "blob_bytes_removed": 1_234,
    }
    said = "Gave 4,904 bytes back; the store is 4,096.\n"
    said += "Removed 3 blobs that nothing named, 1,234 bytes.\n"
    assert desk.type("store", "compact").stderr == said
    assert desk.type("store", "compact", "--json").json()["after_bytes"] == 4_096
    assert desk.type("store", "check").status == 1
    assert desk.type("store", "check", "--json").json()["problems"] == ["page 3"]


def test_a_broken_audit_chain_exits_1(desk: Desk) -> None:
    desk.product.routes["GET", "/v1/audit/verify"] = {"ok": True, "records": 7}
    assert desk.type("audit", "verify").status == 0
    desk.product.routes["GET", "/v1/audit/verify"] = {"ok": False, "broken": "shard 3"}
    outcome = desk.type("audit", "verify", "--json")
    assert (outcome.status, outcome.json()["broken"]) == (1, "shard 3")
    assert "shard 3" in desk.type("audit", "verify").stdout


def test_a_backup_goes_to_an_absolute_path(desk: Desk) -> None:
    target = str(desk.directory / "copy")
    desk.product.routes["POST", "/v1/store/backup"] = {"target": target}
    assert desk.type("backup", "copy").stderr == f"The backup is in {target}\n"
    assert desk.product.requests[0].body == {"target": target}
    assert desk.type("backup", "copy", "--json").json() == {"target": target}


def test_what_needs_the_socket_is_refused_elsewhere(desk: Desk) -> None:
    refusal = Refusal(403, "local_only", "served on the socket only")
    desk.product.routes["POST", "/v1/store/backup"] = refusal
    assert desk.type("backup", "copy").status == 6


def test_restoring_says_that_the_store_is_held(desk: Desk) -> None:
    outcome = desk.type("restore", "copy")
    assert desk.restored == [desk.directory / "copy"]
    assert "kelpie store release" in outcome.stderr
    assert desk.type("restore", "copy", "--json").json()["held"] is True


def test_accepting_a_loss_says_what_is_gone_and_that_the_store_is_held(desk: Desk) -> None:
    assert "nothing was changed" in desk.type("store", "accept-loss").stderr
    desk.lost_after = "2026-11-20T19:00:00+00:00"
    outcome = desk.type("store", "accept-loss")
    assert "after 2026-11-20T19:00:00+00:00 is gone" in outcome.stderr
    assert "kelpie store release" in outcome.stderr
    assert desk.type("store", "accept-loss", "--json").json()["held"] is True
    desk.holder = Holding()
    assert desk.type("store", "accept-loss").status == 73


def test_restoring_under_a_running_server_is_refused(desk: Desk) -> None:
    desk.holder = Holding()
    outcome = desk.type("restore", "copy")
    assert outcome.status == 73
    assert "process 4242 holds" in outcome.stderr
    assert desk.restored == []


def test_a_restore_beside_a_store_says_that_it_makes_a_new_one(desk: Desk) -> None:
    desk.environment["KELPIE_DATA_DIR"] = str(desk.directory)
    (desk.directory / "kelpie.db").touch()
    outcome = desk.type("restore", "b", "--json")
    assert (outcome.status, desk.restored) == (5, [])
    assert "there is a store already" in outcome.error()["message"]
    assert outcome.error()["next"] == "kelpie restore b --data-dir DIR"
    assert desk.type("restore", "b", "--data-dir", "new").status == 0
