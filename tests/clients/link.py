"""S3 without any client of it: as whoever was sent a link, and as a page's form."""

import secrets
import ssl
import urllib.request


def fetch(url, cloud, method="GET", data=None, headers=None):
    """The answer's body; a refusal raises `urllib.error.HTTPError`."""
    request = urllib.request.Request(url, data=data, method=method, headers=headers or {})
    if "Content-type" not in request.headers:
        # A client that signs a PUT's link leaves the type to whoever uses it.
        request.add_unredirected_header("Content-Type", "")
    trust = ssl.create_default_context(cafile=cloud.ca) if url.startswith("https") else None
    with urllib.request.urlopen(request, context=trust, timeout=60) as answer:
        return answer.read()


def form(fields, data, filename="file.txt"):
    """The body of a form with a file as its last field, and the body's type."""
    boundary = secrets.token_hex(16)
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
    file = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
    body = "".join(parts).encode() + file.encode() + data + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def submit(url, fields, data, cloud):
    body, kind = form(fields, data)
    return fetch(url, cloud, method="POST", data=body, headers={"Content-type": kind})
