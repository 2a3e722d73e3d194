"""The control table: where numbers lie, and how they are written there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpolicy.robots.servo.feetech import FEETECH
from hotpolicy.robots.servo.registers import STS3215, Register, decode_errors
from hotpolicy.runtime.errors import BadRequest


@pytest.mark.parametrize(
    ("name", "value", "data"),
    [
        ("position_offset", -1000, "e8 0b"),
        ("position_offset", -710, "c6 0a"),
        ("position_offset", 2047, "ff 07"),
        ("present_position", -400, "90 81"),
        ("present_position", 2030, "ee 07"),
        ("present_load", -5, "05 04"),
        ("model", 777, "09 03"),
        ("torque", 1, "01"),
    ],
)
def test_known_values(name, value, data):
    assert STS3215[name].encode(value) == bytes.fromhex(data)
    assert STS3215[name].decode(bytes.fromhex(data)) == value


def test_the_table_has_no_overlap():
    taken = [address for r in STS3215.values() for address in range(r.address, r.address + r.size)]
    assert len(set(taken)) == len(taken)


@pytest.mark.parametrize("register", STS3215.values(), ids=lambda r: r.name)
def test_every_register_holds_its_whole_range(register: Register):
    high = (1 << (register.sign_bit or 8 * register.size)) - 1
    low = -high if register.sign_bit else 0
    for value in (low, 0, 1, register.default, high):
        assert register.decode(register.encode(value)) == value
    for value in (low - 1, high + 1):
        with pytest.raises(BadRequest, match=f"register {register.name}: expected {low}..{high}, got {value}"):
            register.encode(value)
    with pytest.raises(BadRequest, match="bytes"):
        register.decode(bytes(register.size + 1))


@given(st.integers(-32767, 32767))
def test_positions_round_trip(ticks):
    assert STS3215["present_position"].decode(STS3215["goal_position"].encode(ticks)) == ticks


def test_errors_have_names():
    assert decode_errors(0) == ()
    assert decode_errors(0b101111) == ("voltage", "angle sensor", "overheat", "overcurrent", "overload")
    assert decode_errors(0x10) == ("error bit 4",)


def test_models_have_names():
    assert FEETECH.describe(777) == "STS3215 (777)"
    assert FEETECH.describe(1) == "unknown model (1)"
