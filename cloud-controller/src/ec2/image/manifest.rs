//! The classic bundle manifest (version 2007-10-10), read purely: bytes in, a checked struct out.
//!
//! Its signature is over the bytes of `<machine_configuration>…</…>` followed by those of `<image>…</image>` exactly as they
//! stand in the file (clients.md §1), so those bytes are kept. A document type is refused, and everything is bounded.

use quick_xml::{
    Reader,
    events::{BytesStart, Event},
};

use super::row::Kind;

/// Thirty thousand parts of ten MiB are 300 GB; a manifest of them has about this many bytes.
pub const MAX_BYTES: usize = 8 * 1024 * 1024;
const MAX_PARTS: usize = 30_000;
const MAX_DEPTH: usize = 32;

/// A bundle, as its manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub kind: Kind,
    pub architecture: String,
    /// `aki-…` this image boots with, when the bundler said so.
    pub kernel: Option<String>,
    pub ramdisk: Option<String>,
    /// (virtual name, device), such as (`root`, `/dev/sda1`).
    pub block_devices: Vec<(String, String)>,
    pub name: String,
    /// The account the bundler was told.
    pub user: String,
    /// SHA-1 of the tar.
    pub digest: [u8; 20],
    /// Bytes of the plain image.
    pub size: u64,
    /// Bytes of all parts.
    pub bundled_size: u64,
    /// Encrypted for the cloud: AES-128 key and IV, each as 32 hex digits in text.
    pub encrypted_key: Vec<u8>,
    pub encrypted_iv: Vec<u8>,
    /// In order.
    pub parts: Vec<Part>,
    /// None: the bundle is not signed.
    pub signature: Option<Vec<u8>>,
    /// What the signature is over.
    pub signed: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Beside the manifest; never a path.
    pub filename: String,
    pub digest: [u8; 20],
}

impl Manifest {
    /// The device the root is on.
    pub fn root_device(&self) -> String {
        let named = |wanted: &str| {
            self.block_devices.iter().find(|(name, _)| name == wanted).map(|(_, device)| device.as_str())
        };
        match named("root").or(named("ami")).filter(|d| !d.is_empty() && d.len() <= 32) {
            Some(device) if device.starts_with("/dev/") => device.to_owned(),
            Some(device) => format!("/dev/{device}"),
            None => "/dev/sda1".into(),
        }
    }
}

#[derive(Debug, Default)]
struct Gathered {
    kernel_id: Option<String>,
    ramdisk_id: Option<String>,
    architecture: Option<String>,
    block_devices: Vec<(String, String)>,
    name: Option<String>,
    user: Option<String>,
    kind: Option<String>,
    digest: Option<String>,
    digest_algorithm: Option<String>,
    size: Option<String>,
    bundled_size: Option<String>,
    encrypted_key: Option<String>,
    key_algorithm: Option<String>,
    encrypted_iv: Option<String>,
    parts_count: Option<String>,
    parts: Vec<GatheredPart>,
    signature: Option<String>,
}

/// Reads a manifest. The error is a sentence for the person who registered it.
pub fn parse(bytes: &[u8]) -> Result<Manifest, String> {
    if bytes.len() > MAX_BYTES {
        return Err(format!("the manifest is larger than {MAX_BYTES} bytes"));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "the manifest is not text".to_owned())?;
    let mut reader = Reader::from_str(text);
    let mut gathered = Gathered::default();
    let mut path: Vec<String> = Vec::new();
    let mut value = String::new();
    let mut signed_from = 0;
    let (mut configuration, mut image) = (None, None);
    loop {
        let at = position(&reader);
        match reader.read_event().map_err(|e| format!("the manifest is not well-formed XML: {e}"))? {
            Event::Start(start) => {
                path.push(String::from_utf8_lossy(start.name().as_ref()).into_owned());
                if path.len() > MAX_DEPTH {
                    return Err("the manifest is nested too deeply".into());
                }
                value.clear();
                if path.len() == 2 {
                    signed_from = at;
                }
                open(&mut gathered, &path, &start)?;
            }
            Event::Empty(start) => {
                path.push(String::from_utf8_lossy(start.name().as_ref()).into_owned());
                open(&mut gathered, &path, &start)?;
                close(&mut gathered, &path, "");
                path.pop();
                value.clear();
            }
            Event::End(_) => {
                close(&mut gathered, &path, value.trim());
                let whole = || text.get(signed_from..position(&reader)).map(str::to_owned);
                match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                    [_, "machine_configuration"] => configuration = whole(),
                    [_, "image"] => image = whole(),
                    _ => {}
                }
                path.pop();
                value.clear();
            }
            Event::Text(part) => value.push_str(&part.decode().map_err(|e| e.to_string())?),
            Event::CData(part) => value.push_str(&part.decode().map_err(|e| e.to_string())?),
            Event::GeneralRef(reference) => value.push(resolve(&reference)?),
            Event::DocType(_) => return Err("the manifest has a document type, which no bundle has".into()),
            Event::Eof => break,
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
        }
    }
    let signed = [configuration.unwrap_or_default(), image.unwrap_or_default()].concat().into_bytes();
    checked(gathered, signed)
}

fn position(reader: &Reader<&[u8]>) -> usize {
    usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX)
}

fn resolve(reference: &quick_xml::events::BytesRef<'_>) -> Result<char, String> {
    if let Ok(Some(c)) = reference.resolve_char_ref() {
        return Ok(c);
    }
    let name = String::from_utf8_lossy(reference);
    match name.as_ref() {
        "amp" => Ok('&'),
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "quot" => Ok('"'),
        "apos" => Ok('\''),
        other => Err(format!("the manifest has an unknown entity &{other};")),
    }
}

fn attribute(start: &BytesStart<'_>, name: &str) -> Result<Option<String>, String> {
    let found = start.try_get_attribute(name).map_err(|e| format!("the manifest is not well-formed XML: {e}"))?;
    Ok(found.map(|a| String::from_utf8_lossy(&a.value).into_owned()))
}

fn open(g: &mut Gathered, path: &[String], start: &BytesStart<'_>) -> Result<(), String> {
    let below: Vec<&str> = path.iter().skip(1).map(String::as_str).collect();
    match below[..] {
        ["machine_configuration", "block_device_mapping", "mapping"]
        | ["machine_configuration", "block_device_mappings", "block_device_mapping"] => {
            g.block_devices.push((String::new(), String::new()));
        }
        ["image", "digest"] => g.digest_algorithm = attribute(start, "algorithm")?,
        ["image", "ec2_encrypted_key"] => g.key_algorithm = attribute(start, "algorithm")?,
        ["image", "parts"] => g.parts_count = attribute(start, "count")?,
        ["image", "parts", "part"] => {
            if g.parts.len() >= MAX_PARTS {
                return Err(format!("the manifest has more than {MAX_PARTS} parts"));
            }
            g.parts.push((attribute(start, "index")?, None, None, None));
        }
        ["image", "parts", "part", "digest"] => {
            let algorithm = attribute(start, "algorithm")?;
            if let Some(part) = g.parts.last_mut() {
                part.3 = algorithm;
            }
        }
        _ => {}
    }
    Ok(())
}

fn close(g: &mut Gathered, path: &[String], value: &str) {
    let below: Vec<&str> = path.iter().skip(1).map(String::as_str).collect();
    let text = || Some(value.to_owned());
    match below[..] {
        ["machine_configuration", "architecture"] => g.architecture = text(),
        ["machine_configuration", "kernel_id"] => g.kernel_id = text(),
        ["machine_configuration", "ramdisk_id"] => g.ramdisk_id = text(),
        ["machine_configuration", _, "mapping" | "block_device_mapping", "virtual"] => {
            if let Some(last) = g.block_devices.last_mut() {
                last.0 = value.to_owned();
            }
        }
        ["machine_configuration", _, "mapping" | "block_device_mapping", "device"] => {
            if let Some(last) = g.block_devices.last_mut() {
                last.1 = value.to_owned();
            }
        }
        ["image", "name"] => g.name = text(),
        ["image", "user"] => g.user = text(),
        ["image", "type"] => g.kind = text(),
        ["image", "digest"] => g.digest = text(),
        ["image", "size"] => g.size = text(),
        ["image", "bundled_size"] => g.bundled_size = text(),
        ["image", "ec2_encrypted_key"] => g.encrypted_key = text(),
        ["image", "ec2_encrypted_iv"] => g.encrypted_iv = text(),
        ["image", "parts", "part", "filename"] => {
            if let Some(part) = g.parts.last_mut() {
                part.1 = text();
            }
        }
        ["image", "parts", "part", "digest"] => {
            if let Some(part) = g.parts.last_mut() {
                part.2 = text();
            }
        }
        ["signature"] => g.signature = text(),
        _ => {}
    }
}

fn sha1(what: &str, algorithm: Option<&str>, digest: Option<&str>) -> Result<[u8; 20], String> {
    if algorithm.is_some_and(|a| !a.eq_ignore_ascii_case("SHA1")) {
        return Err(format!("{what} has a digest that is not SHA1"));
    }
    let mut bytes = [0; 20];
    hex::decode_to_slice(digest.unwrap_or_default(), &mut bytes).map_err(|_| format!("{what} has no SHA-1 digest"))?;
    Ok(bytes)
}

fn checked(g: Gathered, signed: Vec<u8>) -> Result<Manifest, String> {
    let number = |what: &str, text: Option<&str>| -> Result<u64, String> {
        text.unwrap_or_default().parse().map_err(|_| format!("the manifest has no {what}"))
    };
    let is_true = |id: &Option<String>| id.as_deref() == Some("true");
    let kind = match (g.kind.as_deref().unwrap_or("machine"), is_true(&g.kernel_id), is_true(&g.ramdisk_id)) {
        ("kernel", _, _) | (_, true, _) => Kind::Kernel,
        ("ramdisk", _, _) | (_, _, true) => Kind::Ramdisk,
        ("machine", _, _) => Kind::Machine,
        (other, _, _) => return Err(format!("the manifest's image type {other:?} is none")),
    };
    if g.key_algorithm.as_deref().is_some_and(|a| !a.eq_ignore_ascii_case("AES-128-CBC")) {
        return Err("the bundle is encrypted with something other than AES-128-CBC".into());
    }
    let encrypted = |what: &str, text: Option<&str>| {
        hex::decode(text.unwrap_or_default())
            .ok()
            .filter(|b| !b.is_empty())
            .ok_or_else(|| format!("the manifest has no {what}"))
    };
    let id = |id: Option<String>| id.filter(|id| !id.is_empty() && id != "true");
    let size = number("image size", g.size.as_deref())?;
    if size == 0 {
        return Err("the image has no bytes".into());
    }
    let signature = match g.signature.as_deref() {
        None | Some("" | "UNSIGNED") => None,
        Some(text) => Some(hex::decode(text).map_err(|_| "the manifest's signature is not hexadecimal".to_owned())?),
    };
    Ok(Manifest {
        kind,
        architecture: g.architecture.filter(|a| !a.is_empty()).unwrap_or_else(|| "x86_64".into()),
        kernel: id(g.kernel_id).filter(|_| kind == Kind::Machine),
        ramdisk: id(g.ramdisk_id).filter(|_| kind == Kind::Machine),
        block_devices: g.block_devices,
        name: g.name.unwrap_or_default(),
        user: g.user.unwrap_or_default(),
        digest: sha1("the image", g.digest_algorithm.as_deref(), g.digest.as_deref())?,
        size,
        bundled_size: number("bundled size", g.bundled_size.as_deref())?,
        encrypted_key: encrypted("key that is encrypted for the cloud", g.encrypted_key.as_deref())?,
        encrypted_iv: encrypted("IV that is encrypted for the cloud", g.encrypted_iv.as_deref())?,
        parts: parts(g.parts, g.parts_count.as_deref())?,
        signature,
        signed,
    })
}

/// Index, filename, digest, algorithm.
type GatheredPart = (Option<String>, Option<String>, Option<String>, Option<String>);

/// The parts by index, which must count 0, 1, 2, … without a gap.
fn parts(gathered: Vec<GatheredPart>, count: Option<&str>) -> Result<Vec<Part>, String> {
    if gathered.is_empty() {
        return Err("the manifest names no parts".into());
    }
    if count.is_some_and(|c| c.parse() != Ok(gathered.len())) {
        return Err(format!("the manifest has {} parts and says it has {}", gathered.len(), count.unwrap_or_default()));
    }
    let mut parts = Vec::with_capacity(gathered.len());
    for (position, (index, filename, digest, algorithm)) in gathered.into_iter().enumerate() {
        let index = match index {
            Some(text) => text.parse::<usize>().map_err(|_| format!("{text:?} is no index of a part"))?,
            None => position,
        };
        let filename = filename.unwrap_or_default();
        let plain = !filename.is_empty()
            && filename.len() <= 1024
            && !filename.contains('/')
            && filename != "."
            && filename != "..";
        if !plain {
            return Err(format!("part {index} has no usable file name"));
        }
        let digest = sha1(&format!("part {index}"), algorithm.as_deref(), digest.as_deref())?;
        parts.push((index, Part { filename, digest }));
    }
    parts.sort_by_key(|(index, _)| *index);
    if let Some((expected, (found, _))) = parts.iter().enumerate().find(|(n, (index, _))| n != index) {
        return Err(format!("the manifest has a part {found} where part {expected} should be"));
    }
    Ok(parts.into_iter().map(|(_, part)| part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(configuration: &str, image_type: &str, signature: &str) -> String {
        format!(
            "<?xml version='1.0' encoding='ASCII'?>\n<manifest><version>2007-10-10</version><bundler><name>euca2ools</name>\
             <version>3.4</version><release>0</release></bundler><machine_configuration>{configuration}</machine_configuration>\
             <image><name>disk &amp; more</name><user>123456789012</user><type>{image_type}</type>\
             <digest algorithm=\"SHA1\">{d}</digest><size>1048576</size><bundled_size>2048</bundled_size>\
             <ec2_encrypted_key algorithm=\"AES-128-CBC\">00ff</ec2_encrypted_key><user_encrypted_key algorithm=\"AES-128-CBC\"/>\
             <ec2_encrypted_iv>01</ec2_encrypted_iv><user_encrypted_iv/>\
             <parts count=\"2\"><part index=\"1\"><filename>disk.part.1</filename><digest algorithm=\"SHA1\">{e}</digest></part>\
             <part index=\"0\"><filename>disk.part.0</filename><digest algorithm=\"SHA1\">{d}</digest></part></parts></image>\
             <signature>{signature}</signature></manifest>",
            d = "ab".repeat(20),
            e = "cd".repeat(20),
        )
    }

    #[test]
    fn what_euca2ools_writes_is_read() {
        let configuration = "<architecture>x86_64</architecture><block_device_mapping><mapping><virtual>ami</virtual>\
                             <device>sda1</device></mapping><mapping><virtual>root</virtual><device>/dev/sda1</device></mapping>\
                             </block_device_mapping><product_codes/><kernel_id>aki-0123456789abcdef0</kernel_id>";
        let text = manifest(configuration, "machine", "00ff");
        let read = parse(text.as_bytes()).unwrap();
        assert_eq!((read.kind, read.name.as_str(), read.size), (Kind::Machine, "disk & more", 1_048_576));
        assert_eq!(read.kernel.as_deref(), Some("aki-0123456789abcdef0"));
        assert_eq!(read.root_device(), "/dev/sda1");
        assert_eq!(read.parts.iter().map(|p| p.filename.as_str()).collect::<Vec<_>>(), ["disk.part.0", "disk.part.1"]);
        assert_eq!(read.signature, Some(vec![0, 255]));
        let signed = String::from_utf8(read.signed).unwrap();
        let expected_start = format!(
            "<machine_configuration>{configuration}</machine_configuration><image><name>disk &amp; more</name>"
        );
        assert!(signed.starts_with(&expected_start), "{signed}");
        assert!(signed.ends_with("</parts></image>"));
    }

    #[test]
    fn both_spellings_of_the_block_devices_and_of_unsigned_are_read() {
        let configuration = "<architecture>i386</architecture><block_device_mappings><block_device_mapping><virtual>root</virtual>\
                             <device>vda</device></block_device_mapping></block_device_mappings>";
        for unsigned in ["UNSIGNED", "", "\n  UNSIGNED\n"] {
            let read = parse(manifest(configuration, "machine", unsigned).as_bytes()).unwrap();
            assert_eq!((read.root_device().as_str(), read.signature), ("/dev/vda", None));
        }
    }

    #[test]
    fn a_kernel_says_so_by_type_or_by_true() {
        for (configuration, image_type, kind) in [
            ("<kernel_id>true</kernel_id>", "kernel", Kind::Kernel),
            ("<kernel_id>true</kernel_id>", "machine", Kind::Kernel),
            ("<ramdisk_id>true</ramdisk_id>", "ramdisk", Kind::Ramdisk),
            ("", "machine", Kind::Machine),
        ] {
            let read = parse(manifest(configuration, image_type, "").as_bytes()).unwrap();
            assert_eq!((read.kind, read.kernel), (kind, None));
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_the_reason() {
        let good = manifest("", "machine", "");
        for (bad, reason) in [
            (String::new(), "no image size"),
            ("<manifest>".to_owned() + &"<a>".repeat(40), "nested too deeply"),
            ("<!DOCTYPE m [<!ENTITY x SYSTEM \"file:///etc/passwd\">]>".to_owned() + &good, "document type"),
            (good.replace("disk &amp; more", "&x;"), "unknown entity"),
            (good.replace("count=\"2\"", "count=\"3\""), "says it has 3"),
            (good.replace("index=\"1\"", "index=\"2\""), "part 2 where part 1"),
            (good.replace("disk.part.1", "../disk.part.1"), "no usable file name"),
            (good.replace("SHA1", "MD5"), "not SHA1"),
            (good.replace("AES-128-CBC", "ROT13"), "AES-128-CBC"),
            (good.replace("<type>machine", "<type>blob"), "is none"),
            (good.replace("</image>", ""), "well-formed"),
            (good.replace("<signature>", "<signature>zz"), "hexadecimal"),
        ] {
            let said = parse(bad.as_bytes()).unwrap_err();
            assert!(said.contains(reason), "{said} / {reason}");
        }
        assert!(parse(&vec![b' '; MAX_BYTES + 1]).unwrap_err().contains("larger"));
        assert!(parse(b"\xff\xfe").unwrap_err().contains("not text"));
    }
}
