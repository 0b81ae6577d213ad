"""Readers keep a document's structure, whatever its format."""

import io
import zipfile

import pytest

from rag.decoding import Unreadable
from rag.loading import READERS, read_document
from rag.word import read_docx

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
STYLES = f"""<w:styles xmlns:w="{W}">
<w:style w:styleId="T"><w:name w:val="Title"/></w:style>
<w:style w:styleId="1"><w:name w:val="heading 1"/></w:style>
<w:style w:styleId="biaoti2"><w:name w:val="标题 2"/></w:style>
<w:style w:styleId="own"><w:name w:val="Our own"/><w:pPr><w:outlineLvl w:val="2"/></w:pPr></w:style>
</w:styles>"""


def paragraph(text, style="", inside=""):
    named = f'<w:pStyle w:val="{style}"/>' if style else ""
    return f"<w:p><w:pPr>{named}{inside}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def docx(body, **parts):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", f'<w:document xmlns:w="{W}"><w:body>{body}</w:body></w:document>')
        archive.writestr("word/styles.xml", STYLES)
        for name, content in parts.items():
            archive.writestr(name.replace("__", "/") + ".xml", content)
    return file.getvalue()


def read(data, kind):
    reading = read_document(data if isinstance(data, bytes) else data.encode(), kind)
    return [(s.heading, [(b.kind, b.text) for b in s.blocks]) for s in reading.sections]


def test_markdown_has_headings_of_both_kinds_code_and_tables():
    page = "Tickets\n=======\nIntro.\n\nRefunds\n---\n"
    page += "```sh\n# no heading\n```\n### Fees ###\n| a | b |\n|---|---|\n| 1 | 2 |\n\nEnd."

    assert read(page, ".md") == [
        (("Tickets",), [("prose", "Intro.")]),
        (("Tickets", "Refunds"), [("code", "```sh\n# no heading\n```")]),
        (("Tickets", "Refunds", "Fees"), [("table", "| 1 | 2 |"), ("prose", "End.")]),
    ]


def test_markdown_code_in_a_list_is_code():
    assert [kind for kind, _ in read("- one\n\n  ```\n  x = 1\n  ```\n- two", ".md")[0][1]] == ["prose", "code", "prose"]


def test_front_matter_gives_title_and_date():
    reading = read_document(b"---\ntitle: Fees\ndate: 2025-03-04\n---\nText\n", ".md")

    assert (reading.title, reading.date, reading.sections[0].blocks[0].text) == ("Fees", "2025-03-04", "Text")


def test_html_without_scripts_menus_and_hidden_parts():
    page = """<!-- no --><nav>menu</nav><h1>Board</h1><p>Food <b>and</b> drink<br>All day</p><div>Loose</div><h3>Pets</h3>
    <ul><li>Dogs</li></ul><pre>a\n  b</pre><table><tr><th>A<th>B</tr><tr><td>1<td>2</tr></table>
    <p hidden>x</p><script>evil()</script>"""

    assert read(page, ".html") == [
        (("Board",), [("prose", "Food and drink"), ("prose", "All day"), ("prose", "Loose")]),
        (("Board", "Pets"), [("prose", "- Dogs"), ("code", "a\n  b"), ("table", "| 1 | 2 |")]),
    ]


def test_html_in_chinese_under_a_wrong_declaration():
    page = '<?xml version="1.0" encoding="latin-1"?><meta name="date" content="2024-05-06"><h6>退票</h6><p>免费'

    assert read(page, ".htm") == [(("退票",), [("prose", "免费")])]
    assert read_document(page.encode(), ".htm").date == "2024-05-06"


def test_docx_has_headings_lists_and_tables():
    cells = "<w:tr><w:tc><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:tc></w:tr>"
    body = (
        paragraph("Handbook", "T") + paragraph("Tickets", "1") + paragraph("退票", "biaoti2") + paragraph("Deep", "own")
        + paragraph("A point", inside="<w:numPr/>") + f"<w:tbl>{cells.format('a', 'b')}{cells.format('1', '2')}</w:tbl>"
        + f"<w:sdt><w:sdtContent>{paragraph('In a control')}</w:sdtContent></w:sdt>"
    )  # fmt: skip

    assert read(docx(body), ".docx") == [
        (("Handbook", "Tickets", "退票", "Deep"), [("prose", "- A point"), ("table", "| 1 | 2 |"), ("prose", "In a control")])
    ]


def test_docx_says_when_it_was_changed():
    core = '<c xmlns:dcterms="http://purl.org/dc/terms/"><dcterms:modified>2023-01-02T03:04:05Z</dcterms:modified></c>'

    assert read_docx(docx(paragraph("x"), docProps__core=core)).date == "2023-01-02"


def test_csv_rows_say_their_columns():
    assert read("Fee;Kind\n5;child, small\n;\n9;adult\n", ".csv") == [
        ((), [("table", "Fee: 5; Kind: child, small\nFee: 9; Kind: adult")])
    ]
    assert read('名称,说明\n"退票","两行\n文字",多\n', ".csv") == [((), [("table", "名称: 退票; 说明: 两行 文字; column 3: 多")])]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("data", "kind", "why"),
    [
        (b"%PDF-1.4 nonsense", ".pdf", "broken"),
        (b"\xd0\xcf\x11\xe0 old", ".docx", "without a password"),
        (b"PK nonsense", ".docx", "not a DOCX"),
        (docx(paragraph("x" * 30_000_000)), ".docx", "unpacks from"),
        (docx("<w:p>")[:-200], ".docx", "not a DOCX"),
        (docx("<w:p>"), ".docx", "broken"),
        (b"only,a,header", ".csv", "no row"),
        (b"   \n", ".md", "no text in it"),
        (b"<p> </p>", ".html", "no text in it"),
        (docx(""), ".docx", "no text in it"),
    ],
)
def test_refused_with_what_to_do(data, kind, why):
    with pytest.raises(Unreadable, match=why):
        read_document(data, kind)


def test_entities_of_xml_are_not_resolved(tmp_path):
    (tmp_path / "secret").write_text("secret")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(
            "word/document.xml",
            f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{tmp_path}/secret">]><w:document xmlns:w="{W}"><w:body>'
            "<w:p><w:r><w:t>a&e;b</w:t></w:r></w:p></w:body></w:document>",
        )

    assert "secret" not in str(read(file.getvalue(), ".docx"))


def test_encrypted_and_scanned_pdfs_are_refused():
    from pypdf import PdfWriter

    for encrypt, why in ((True, "encrypted"), (False, "OCR")):
        writer, file = PdfWriter(), io.BytesIO()
        writer.add_blank_page(100, 100)
        if encrypt:
            writer.encrypt("secret", algorithm="RC4-128")
        writer.write(file)
        with pytest.raises(Unreadable, match=why):
            read_document(file.getvalue(), ".pdf")


def test_kinds():
    assert set(READERS) == {".md", ".markdown", ".txt", ".html", ".htm", ".csv", ".tsv", ".pdf", ".docx"}
