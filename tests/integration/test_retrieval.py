"""A floor under retrieval: a small corpus of two languages, the real embedding model, and figures that may not fall."""

import pytest

from rag.evaluate import PooledEmbeddings, evaluate
from rag.judgements import Judged

# Each text with a question that it answers; neighbours share words, so that words alone or meaning alone would not do.
ANSWERS = {
    "The lighthouse keeper trims the wick twice a night and notes the wind in a log.": "how often is the lamp's wick cut",
    "A lighthouse lens of the first order stands taller than a person.": "size of a first-order lens",
    "Sourdough rises slowly because wild yeast is sparse; keep it at 26 degrees for eight hours.": "why does sourdough take long",
    "Rye flour holds more water than wheat flour, so rye dough is sticky.": "which flour makes dough sticky",
    "To descale the kettle, boil it with one part vinegar and two parts water, then rinse.": "remove limescale from a kettle",
    "The kettle switches off by itself when it is lifted from its base.": "when does the kettle turn itself off",
    "Library books may be renewed three times unless another reader has reserved them.": "how many times can I extend a loan",
    "Lost library books are charged at the price of a new copy plus five pounds.": "what do I pay for a book I lost",
    "The reading room closes at nine on weekdays and at five on Saturdays.": "closing time of the reading room on Saturday",
    "Bees find their way home by the sun and by landmarks near the hive.": "how do honeybees navigate",
    "A queen bee lays up to two thousand eggs a day in summer.": "number of eggs per day from the queen",
    "Tomatoes split when heavy rain follows a dry spell; water them evenly.": "why do my tomatoes crack",
    "Pinch out the side shoots of tomatoes so that the plant puts its strength into fruit.": "pruning shoots of tomato plants",
    "The 14 tram runs every six minutes from the harbour to the old market.": "tram from the port to the market",
    "Night trams leave the old market on the hour and carry bicycles for free.": "can I take my bike on the night tram",
    "Glaciers carve valleys into the shape of a U, rivers into the shape of a V.": "what shape of valley does ice make",
    "Meltwater under a glacier lets it slide faster in the afternoon.": "why do glaciers move faster later in the day",
    "A violin's bow is rosined so that the hair grips the string.": "purpose of rosin",
    "Violins are tuned in fifths, guitars mostly in fourths.": "intervals between violin strings",
    "Invoices are paid within thirty days; a late payment costs two percent a month.": "penalty for paying an invoice late",
    "Travel expenses need a receipt for anything above ten euros.": "do I need a receipt for small expenses",
    "The error E47 means that the printer's paper tray is not seated; push it in until it clicks.": "printer shows E47",
    "The error E74 means that the toner is nearly empty; order a cartridge.": "printer shows E74",
    "灯塔守护人每晚修剪两次灯芯,并把风向记在日志里。": "灯芯一晚上剪几次",
    "一等灯塔的透镜比人还高。": "一等透镜有多大",
    "酸面团发酵慢,因为野生酵母少,应在26度下放置八小时。": "酸面团为什么发得慢",
    "黑麦粉比小麦粉吸水多,所以黑麦面团黏手。": "哪种面粉做的面团粘",
    "除水垢时,用一份醋和两份水煮开,再冲洗水壶。": "怎么去掉水壶里的水垢",
    "水壶从底座上拿起来时会自动断电。": "水壶什么时候自动关闭",
    "图书可以续借三次,被别人预约的除外。": "书最多能续借几回",
    "丢失图书按新书价格赔偿,另加五元手续费。": "书弄丢了要赔多少钱",
    "阅览室工作日晚上九点关门,周六下午五点关门。": "周六阅览室几点关",
    "蜜蜂靠太阳和蜂巢附近的标志物找到回家的路。": "蜜蜂怎样认路",
    "蜂王夏天每天最多产两千枚卵。": "蜂王一天产多少卵",
    "久旱之后下大雨,番茄会裂果,浇水要均匀。": "番茄为什么会裂开",
    "掐掉番茄的侧芽,养分就集中到果实上。": "番茄侧枝要不要剪",
    "14路电车每六分钟一班,从港口开往老市场。": "从码头到老市场坐几路车",
    "夜班电车整点从老市场发车,自行车免费。": "夜里的电车能带自行车吗",
    "冰川把山谷削成U形,河流把山谷切成V形。": "冰川形成什么形状的谷",
    "小提琴按五度定弦,吉他多按四度定弦。": "小提琴的弦相差几度",
    "发票须在三十天内付清,逾期每月加收百分之二。": "发票逾期付款怎么罚",
    "差旅费超过十元须附收据。": "小额差旅费要收据吗",
    "错误代码E47表示打印机纸盒没有装好,推到咔哒一声为止。": "打印机显示E47",
    "错误代码E74表示墨粉快用完了,请订购墨盒。": "打印机显示E74",
}
FLOOR = 0.93  # measured: 0.96
# nDCG@10 by language; one question whose answer falls from the first place to the second costs 0.017.
FLOORS = {
    "bm25": {"en": 0.85, "zh": 0.93},  # measured: 0.881, 0.965
    "dense": {"en": 0.94, "zh": 0.97},  # measured: 0.968, 1.000
    "hybrid": {"en": 0.94, "zh": 0.94},  # measured: 0.968, 0.965
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    names = {text: f"d{number:02}" for number, text in enumerate(ANSWERS)}
    judged = Judged(
        {name: ("", text) for text, name in names.items()},
        {f"q{name}": ANSWERS[text] for text, name in names.items()},
        {f"q{name}": {name: 1} for name in names.values()},
    )
    with PooledEmbeddings(1) as embeddings:
        return evaluate(
            judged, {"hybrid": {"dense_weight": 0.6}}, embeddings=embeddings, cache=tmp_path_factory.mktemp("cache"),
            chunk_characters=900, progress=lambda *_: None,
        ).report()  # fmt: skip


def test_hybrid_search_stays_above_its_floor_in_both_languages(report):
    found = report["by_system"]["hybrid"]

    assert report["queries"] == len(ANSWERS)
    assert found["ndcg@10"] >= FLOOR
    assert found["recall@5"] >= FLOOR
    assert all(found["by_language"][language]["ndcg@10"] >= FLOOR - 0.03 for language in ("en", "zh"))


def test_hybrid_search_is_ahead_of_words_and_hardly_behind_vectors_alone(report):
    """These questions are in other words than their answers, which vectors are better at; one of them lost is 0.02."""
    systems = report["by_system"]

    assert systems["hybrid"]["ndcg@10"] >= systems["bm25"]["ndcg@10"] + 0.02
    assert systems["hybrid"]["ndcg@10"] >= systems["dense"]["ndcg@10"] - 0.02


@pytest.mark.parametrize("system", FLOORS)
def test_words_vectors_and_both_stay_above_their_floors(report, system):
    found = report["by_system"][system]["by_language"]

    assert {language: of["ndcg@10"] for language, of in found.items() if of["ndcg@10"] < FLOORS[system][language]} == {}
    assert found["zh"]["recall@5"] == 1
    assert found["en"]["recall@5"] >= (0.95 if system == "bm25" else 1)
