"""A browser: real forms that send files into buckets, and pages of one origin that use the API at another."""

import html
import http.server
import json
import os
import signal
import subprocess
import threading
import urllib.parse

import pytest

from waiting import until
from with_boto3 import client

BROWSER = "chromium-headless-shell"
# What a person does by hand: choose a file, press the button.
CHOOSE_AND_SEND = """
const chosen = new DataTransfer();
chosen.items.add(new File([FILE], "my photo.txt", {type: "text/x-photo"}));
document.querySelector("input[type=file]").files = chosen.files;
document.querySelector("input[type=submit]").click();
"""


class Pages:
    """A web server of its own origin, which remembers what it was asked for."""

    def __init__(self):
        self.pages, self.asked = {}, []
        pages = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                pages.asked.append(self.path)
                found = pages.pages.get(urllib.parse.urlsplit(self.path).path)
                self.send_response(200 if found is not None else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write((found or "").encode())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def told(self, path):
        """The query that `path` was last asked with."""
        found = [urllib.parse.urlsplit(asked) for asked in self.asked]
        queries = [asked.query for asked in found if asked.path == path]
        return dict(urllib.parse.parse_qsl(queries[-1], keep_blank_values=True)) if queries else None


@pytest.fixture
def pages():
    pages = Pages()
    yield pages
    pages.server.shutdown()


@pytest.fixture
def visit(cloud, tmp_path):
    """Opens a page in a browser of a fresh profile, until the test ends."""
    running = []

    def open_page(url):
        command = [
            BROWSER, "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}",
            # The cloud's own authority is in no browser's list.
            "--ignore-certificate-errors", "--remote-debugging-port=0", url,
        ]  # fmt: skip
        log = open(tmp_path / "browser.log", "ab")
        running.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))

    yield open_page
    for browser in running:
        # It is a whole family of processes.
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()


def form(post, file):
    """The page of a form with a file, which is sent as soon as the page is there."""
    fields = "".join(
        f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">' for name, value in post["fields"].items()
    )
    return (
        f'<!DOCTYPE html><meta charset="utf-8"><form action="{html.escape(post["url"])}" method="post" '
        f'enctype="multipart/form-data">{fields}<input type="file" name="file"><input type="submit"></form>'
        f"<script>{CHOOSE_AND_SEND.replace('FILE', json.dumps(file))}</script>"
    )


@pytest.mark.parametrize("version, scheme", [("s3v4", "http"), ("s3v4", "https"), ("s3", "http")])
def test_a_form_sends_a_file_and_the_browser_is_sent_on(version, scheme, cloud, bucket, pages, visit):
    s3 = client(cloud, "s3", scheme, signature_version=version)
    fields = {"success_action_redirect": f"{pages.origin}/thanks", "x-amz-meta-of": "a form, ü", "Content-Type": "text/x-photo"}
    conditions = [*({name: value} for name, value in fields.items()), ["content-length-range", 1, 100]]
    post = s3.generate_presigned_post(bucket, "photos/${filename}", Fields=fields, Conditions=conditions, ExpiresIn=300)
    pages.pages = {"/form": form(post, "what it shows: ü"), "/thanks": "thanks"}
    visit(f"{pages.origin}/form")
    told = until("the browser is sent on", lambda: pages.told("/thanks"), patience=120)
    assert (told["bucket"], told["key"]) == (bucket, "photos/my photo.txt")
    sent = s3.get_object(Bucket=bucket, Key="photos/my photo.txt")
    assert sent["Body"].read().decode() == "what it shows: ü" and sent["ContentType"] == "text/x-photo"
    assert told["etag"] == sent["ETag"]


def test_a_form_that_says_too_much_sends_nothing(cloud, bucket, pages, visit):
    """A page that is refused goes nowhere; the one in the frame beside it does."""
    s3 = client(cloud, "s3", "http")

    def post(key, most):
        fields = {"success_action_redirect": f"{pages.origin}/thanks"}
        conditions = [fields, ["content-length-range", 1, most]]
        return s3.generate_presigned_post(bucket, key, Fields=fields, Conditions=conditions, ExpiresIn=300)

    # A frame that shows what another origin answered tells nothing of itself.
    frames = """<!DOCTYPE html><script>
        function loaded(frame) { try { frame.contentWindow.location.href } catch (e) { fetch("/answered") } }
        </script><body><iframe src="/large" onload="loaded(this)"></iframe><iframe src="/small"></iframe>"""
    pages.pages = {
        "/": frames, "/answered": "", "/thanks": "thanks",
        "/large": form(post("large", 5), "six bytes"), "/small": form(post("small", 10), "six bytes"),
    }  # fmt: skip
    visit(f"{pages.origin}/")
    told = until("the small one is sent on", lambda: pages.told("/thanks"), patience=120)
    until("the large one is answered", lambda: pages.told("/answered") is not None, patience=120)
    assert told["key"] == "small"
    assert [found["Key"] for found in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["small"]


FETCHES = """<!DOCTYPE html><script>
async function tell(name, what) {
    let outcome;
    try { outcome = await what(); } catch (e) { outcome = "denied"; }
    return name + "=" + encodeURIComponent(outcome);
}
(async () => {
    const told = [];
    told.push(await tell("get", async () => { const a = await fetch(GET); return a.status + " " + a.headers.get("etag") + " " + await a.text(); }));
    told.push(await tell("put", async () => (await fetch(PUT, {method: "PUT", body: "by script", headers: {"x-amz-meta-of": "a page"}})).status));
    told.push(await tell("delete", async () => (await fetch(DELETE, {method: "DELETE"})).status));
    await fetch("/told?" + told.join("&"));
})();
</script>"""


def test_pages_of_other_origins_may_what_the_bucket_lets_them(cloud, bucket, pages, visit):
    s3 = client(cloud, "s3", "http")
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"hello")["ETag"]
    rule = {
        "AllowedOrigins": [pages.origin], "AllowedMethods": ["GET", "PUT"], "AllowedHeaders": ["x-amz-*", "content-type"],
        "ExposeHeaders": ["ETag"],
    }  # fmt: skip
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [rule]})
    signed = {"Bucket": bucket, "Key": "put", "ContentType": "text/plain;charset=UTF-8", "Metadata": {"of": "a page"}}
    urls = {
        "GET": s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}),
        "PUT": s3.generate_presigned_url("put_object", Params=signed),
        "DELETE": s3.generate_presigned_url("delete_object", Params={"Bucket": bucket, "Key": "k"}),
    }

    def told_to(server):
        page = FETCHES
        for name, url in urls.items():
            page = page.replace(f"({name}", f"({json.dumps(url)}")
        server.pages = {"/": page, "/told": ""}
        visit(f"{server.origin}/")
        return until("the page has tried", lambda: server.told("/told"), patience=120)

    assert told_to(pages) == {"get": f"200 {etag} hello", "put": "200", "delete": "denied"}
    assert s3.get_object(Bucket=bucket, Key="put")["Metadata"] == {"of": "a page"}
    assert s3.head_object(Bucket=bucket, Key="k"), "what the preflight did not allow was not done"

    stranger = Pages()
    try:
        assert told_to(stranger) == {"get": "denied", "put": "denied", "delete": "denied"}
    finally:
        stranger.server.shutdown()
