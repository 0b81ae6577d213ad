"""Identifiers of China: check digits raise a score, context makes a number likely."""

import pytest

from guards.china import company, id_card
from guards.pii import ENTITIES, find_pii


def found(text):
    return [(span.entity, text[span.start : span.end]) for span in find_pii(text, ENTITIES, 0.4)]


def test_a_check_digit_raises_the_score_and_does_not_gate():
    assert id_card("11010519491231002X") == 1.0
    assert id_card("110105194912310021") == 0.6
    assert id_card("990105194912310021") == 0.45
    assert id_card("110105194913310021") < 0.4


def test_a_company_number_is_gated_by_its_check_digit():
    assert company("91350100M000100Y43") == 0.9
    assert company("91350100M000100Y44") is None


@pytest.mark.parametrize(
    ("text", "entity", "value"),
    [
        ("身份证号110105491231002", "CN_ID_CARD", "110105491231002"),
        ("身份证110105 19491231 002X。", "CN_ID_CARD", "110105 19491231 002X"),
        ("公民身份号码110105194913310021", "CN_ID_CARD", "110105194913310021"),
        ("ID card number is 990105194912310021.", "CN_ID_CARD", "990105194912310021"),
        ("银行卡号6222 0212 3456 7890", "CN_BANK_CARD", "6222 0212 3456 7890"),
        ("护照号码：E12345678", "CN_PASSPORT", "E12345678"),
        ("passport EA1234567", "CN_PASSPORT", "EA1234567"),
        ("港澳通行证H12345678", "CN_PASSPORT", "H12345678"),
        ("车牌粤BD12345", "CN_PLATE", "粤BD12345"),
        ("车牌粤B·12345D已登记", "CN_PLATE", "粤B·12345D"),
        ("京A1234警", "CN_PLATE", "京A1234警"),
        ("统一社会信用代码91350100M000100Y43。", "CN_USCC", "91350100M000100Y43"),
        ("加我微信：wang_lei88", "CN_WECHAT", "wang_lei88"),
        ("QQ：123456789", "CN_QQ", "123456789"),
        ("邮编100020", "CN_POSTCODE", "100020"),
        ("他住在北京市海淀区中关村大街27号3单元501室，", "CN_ADDRESS", "北京市海淀区中关村大街27号3单元501室"),
        ("寄到青岛市市南区香港中路10号", "CN_ADDRESS", "青岛市市南区香港中路10号"),
        ("河北省沧州市献县河城街镇东里村23号", "CN_ADDRESS", "河北省沧州市献县河城街镇东里村23号"),
        ("北京朝阳区光华路8号和平大厦A座1203", "CN_ADDRESS", "北京朝阳区光华路8号和平大厦A座1203"),
        ("台北市信义区松仁路五段7号。", "CN_ADDRESS", "台北市信义区松仁路五段7号"),
        ("我在解放路12号等你", "CN_ADDRESS", "解放路12号"),
    ],
)
def test_finds(text, entity, value):
    assert found(text) == [(entity, value)]


@pytest.mark.parametrize(
    "text",
    [
        "编号E12345678已入库",
        "订单6222021234567890",
        "参数110105491231002",
        "浙江省杭州市是旅游城市",
        "QQ音乐10周年",
        "微信支付和微信群",
        "编号100020",
    ],
)
def test_leaves_alone(text):
    assert found(text) == []
