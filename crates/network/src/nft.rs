//! nf_tables over nfnetlink: the few objects and expressions our table is made of.
//!
//! Numbers are in network byte order, unlike rtnetlink's. Registers: 8 to 23 are the
//! sixteen of four bytes each (`NFT_REG32_00` and on); a concatenated key lies in several.

use crate::netlink::answer::{self, Answer};
use crate::netlink::request::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, Request};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEWTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
const GETTABLE: u16 = NEWTABLE | 1;
const DELTABLE: u16 = NEWTABLE | 2;
const NEWCHAIN: u16 = NEWTABLE | 3;
const NEWRULE: u16 = NEWTABLE | 6;
const DELRULE: u16 = NEWTABLE | 8;
const NEWSET: u16 = NEWTABLE | 9;
const NEWSETELEM: u16 = NEWTABLE | 12;
const GETSETELEM: u16 = NEWTABLE | 13;
const DELSETELEM: u16 = NEWTABLE | 14;

const NFPROTO_IPV4: u8 = 2;
const NFT_SET_MAP: u32 = 8;
const NFTA_LIST_ELEM: u16 = 1;
/// Length of `struct nfgenmsg`, bytes.
const HEADER: usize = 4;
/// The type of a comment in the user data of an element, as nft(8) writes it.
const UDATA_COMMENT: u8 = 0;

/// The first of the registers of four bytes.
pub(crate) const REG: u32 = 8;

/// The data types of nft(8), so that it prints our maps as what they are.
#[derive(Clone, Copy)]
pub(crate) enum DataType {
    Ipv4Address,
    InetProtocol,
    InetService,
}

/// Types of concatenated values, six bits each, and their length, four bytes each.
fn concatenated(types: &[DataType]) -> (u32, u32) {
    types.iter().fold((0, 0), |(kind, length), part| {
        let part = match part {
            DataType::Ipv4Address => 7,
            DataType::InetProtocol => 12,
            DataType::InetService => 13,
        };
        (kind << 6 | part, length + 4)
    })
}

fn header(resource: u16) -> [u8; HEADER] {
    let [high, low] = resource.to_be_bytes();
    [NFPROTO_IPV4, 0, high, low]
}

fn message(request: &mut Request, kind: u16, flags: u16, operation: String) -> &mut Request {
    request.message(kind, flags, operation).raw(&header(0))
}

/// A transaction: what `commands` adds is done whole or not at all.
pub(crate) fn transaction(operation: &str, commands: impl FnOnce(&mut Request)) -> Request {
    let mut request = Request::transaction();
    request.message(BATCH_BEGIN, 0, operation).raw(&header(NFNL_SUBSYS_NFTABLES));
    commands(&mut request);
    request.message(BATCH_END, 0, operation).raw(&header(NFNL_SUBSYS_NFTABLES));
    request
}

pub(crate) fn add_table(request: &mut Request, table: &str) {
    message(request, NEWTABLE, NLM_F_CREATE, format!("add nftables table {table}"))
        .string(1, table);
}

/// Asks whether the table is there (`ENOENT` if not).
pub(crate) fn get_table(request: &mut Request, table: &str) {
    message(request, GETTABLE, 0, format!("find nftables table {table}")).string(1, table);
}

pub(crate) fn delete_table(request: &mut Request, table: &str) {
    message(request, DELTABLE, 0, format!("delete nftables table {table}")).string(1, table);
}

/// Where a base chain sees packets.
#[derive(Clone, Copy)]
pub(crate) struct Hook {
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    /// Number of the netfilter hook.
    pub(crate) number: u32,
    /// Lower comes first.
    pub(crate) priority: i32,
}

/// A chain, and none of the rules it had before.
pub(crate) fn add_chain(request: &mut Request, table: &str, chain: &str, hook: Option<Hook>) {
    let operation = format!("add nftables chain {table} {chain}");
    let added =
        message(request, NEWCHAIN, NLM_F_CREATE, operation).string(1, table).string(3, chain);
    if let Some(hook) = hook {
        added
            .nest(4, |nest| {
                nest.number_be(1, hook.number).attribute(2, &hook.priority.to_be_bytes());
            })
            .string(7, hook.kind);
    }
    let operation = format!("flush nftables chain {table} {chain}");
    message(request, DELRULE, 0, operation).string(1, table).string(2, chain);
}

/// A map of unlimited size.
pub(crate) fn add_map(
    request: &mut Request,
    table: &str,
    (map, id): (&str, u32),
    key: &[DataType],
    data: &[DataType],
) {
    let ((key_type, key_length), (data_type, data_length)) =
        (concatenated(key), concatenated(data));
    message(request, NEWSET, NLM_F_CREATE, format!("add nftables map {table} {map}"))
        .string(1, table)
        .string(2, map)
        .number_be(3, NFT_SET_MAP)
        .number_be(4, key_type)
        .number_be(5, key_length)
        .number_be(6, data_type)
        .number_be(7, data_length)
        .number_be(10, id);
}

/// A rule at the end of a chain: the expressions that `expressions` adds.
pub(crate) fn add_rule(
    request: &mut Request,
    table: &str,
    chain: &str,
    expressions: impl FnOnce(&mut Request),
) {
    let operation = format!("add rule to nftables chain {table} {chain}");
    message(request, NEWRULE, NLM_F_CREATE | NLM_F_APPEND, operation)
        .string(1, table)
        .string(2, chain)
        .nest(4, expressions);
}

/// One element of a map.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    pub(crate) data: Vec<u8>,
    /// Whose it is.
    pub(crate) comment: String,
}

/// How many elements one message carries: its nest has less than 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 256;

/// Adds elements; `EEXIST` when a key is there already.
pub(crate) fn add_elements(request: &mut Request, table: &str, map: &str, elements: &[Element]) {
    for some in elements.chunks(ELEMENTS_PER_MESSAGE) {
        let operation = format!("add elements to nftables map {table} {map}");
        message(request, NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, operation)
            .string(1, table)
            .string(2, map)
            .nest(3, |list| {
                for element in some {
                    list.nest(NFTA_LIST_ELEM, |nest| {
                        nest.nest(1, |key| value(key, &element.key))
                            .nest(2, |data| value(data, &element.data))
                            .attribute(6, &user_data(&element.comment));
                    });
                }
            });
    }
}

/// Deletes elements by key; `ENOENT` when one is not there.
pub(crate) fn delete_elements(request: &mut Request, table: &str, map: &str, keys: &[Vec<u8>]) {
    for some in keys.chunks(ELEMENTS_PER_MESSAGE) {
        let operation = format!("delete elements of nftables map {table} {map}");
        message(request, DELSETELEM, 0, operation).string(1, table).string(2, map).nest(
            3,
            |list| {
                for key in some {
                    list.nest(NFTA_LIST_ELEM, |nest| {
                        nest.nest(1, |nest| value(nest, key));
                    });
                }
            },
        );
    }
}

/// Asks for every element; the answers are for [`parse_elements`].
pub(crate) fn list_elements(request: &mut Request, table: &str, map: &str) {
    let operation = format!("list elements of nftables map {table} {map}");
    message(request, GETSETELEM, NLM_F_DUMP, operation).string(1, table).string(2, map);
}

/// Reads the elements of one answer.
pub(crate) fn parse_elements(answer: &Answer<'_>) -> Result<Vec<Element>, &'static str> {
    let Some((_, list)) = answer.attributes(HEADER)?.find(|(kind, _)| *kind == 3) else {
        return Ok(Vec::new());
    };
    let element = |bytes| {
        let content = |kind| answer::find(bytes, kind).and_then(|nest| answer::find(nest, 1));
        Some(Element {
            key: content(1)?.to_vec(),
            data: content(2)?.to_vec(),
            comment: answer::find(bytes, 6).map(comment).unwrap_or_default(),
        })
    };
    answer::attributes(list)
        .map(|(_, bytes)| element(bytes).ok_or("a map element without key or data"))
        .collect()
}

fn value(nest: &mut Request, bytes: &[u8]) {
    nest.attribute(1, bytes);
}

/// A comment as nft(8) keeps it: type, length with the final NUL, text.
fn user_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).expect("sandbox ids are short");
    let mut bytes = vec![UDATA_COMMENT, length];
    bytes.extend_from_slice(comment.as_bytes());
    bytes.push(0);
    bytes
}

fn comment(user_data: &[u8]) -> String {
    match user_data {
        [UDATA_COMMENT, length, text @ ..] => {
            answer::text(text.get(..usize::from(*length)).unwrap_or(text))
        }
        _ => String::new(),
    }
}

/// Expressions of rules. Each adds one list element.
pub(crate) mod expression {
    use super::Request;

    /// What a comparison wants.
    #[derive(Clone, Copy)]
    pub(crate) enum Is {
        Equal,
        NotEqual,
    }

    /// A key of the `meta` expression.
    #[derive(Clone, Copy)]
    pub(crate) enum Meta {
        InputInterface,
        OutputInterface,
        Protocol,
    }

    /// A header a field is in.
    #[derive(Clone, Copy)]
    pub(crate) enum Field {
        SourceAddress,
        DestinationAddress,
        DestinationPort,
    }

    fn expression(rule: &mut Request, name: &str, data: impl FnOnce(&mut Request)) {
        rule.nest(super::NFTA_LIST_ELEM, |nest| {
            nest.string(1, name).nest(2, data);
        });
    }

    pub(crate) fn load_meta(rule: &mut Request, key: Meta, register: u32) {
        let key = match key {
            Meta::InputInterface => 6,
            Meta::OutputInterface => 7,
            Meta::Protocol => 16,
        };
        expression(rule, "meta", |data| {
            data.number_be(1, register).number_be(2, key);
        });
    }

    pub(crate) fn load_field(rule: &mut Request, field: Field, register: u32) {
        let (base, offset, length) = match field {
            Field::SourceAddress => (1, 12, 4),
            Field::DestinationAddress => (1, 16, 4),
            Field::DestinationPort => (2, 2, 2),
        };
        expression(rule, "payload", |data| {
            data.number_be(1, register)
                .number_be(2, base)
                .number_be(3, offset)
                .number_be(4, length);
        });
    }

    /// Loads the type of the destination address as the routing table knows it.
    pub(crate) fn load_destination_type(rule: &mut Request, register: u32) {
        const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
        const NFTA_FIB_F_DADDR: u32 = 2;
        expression(rule, "fib", |data| {
            data.number_be(1, register)
                .number_be(2, NFT_FIB_RESULT_ADDRTYPE)
                .number_be(3, NFTA_FIB_F_DADDR);
        });
    }

    /// Loads the status bits of the connection, in this machine's byte order.
    pub(crate) fn load_connection_status(rule: &mut Request, register: u32) {
        const NFT_CT_STATUS: u32 = 2;
        expression(rule, "ct", |data| {
            data.number_be(1, register).number_be(2, NFT_CT_STATUS);
        });
    }

    pub(crate) fn mask(rule: &mut Request, register: u32, mask: [u8; 4]) {
        expression(rule, "bitwise", |data| {
            data.number_be(1, register).number_be(2, register).number_be(3, 4);
            data.nest(4, |nest| super::value(nest, &mask));
            data.nest(5, |nest| super::value(nest, &[0; 4]));
        });
    }

    pub(crate) fn compare(rule: &mut Request, register: u32, is: Is, with: &[u8]) {
        let operator = match is {
            Is::Equal => 0,
            Is::NotEqual => 1,
        };
        expression(rule, "cmp", |data| {
            data.number_be(1, register).number_be(2, operator);
            data.nest(3, |nest| super::value(nest, with));
        });
    }

    /// Replaces the key at `register` by its data; without an element the rule ends.
    pub(crate) fn look_up(rule: &mut Request, map: (&str, u32), register: u32) {
        expression(rule, "lookup", |data| {
            data.string(1, map.0).number_be(2, register).number_be(3, register).number_be(4, map.1);
        });
    }

    /// Sends the packet to the address and port in these registers.
    pub(crate) fn destination_nat(rule: &mut Request, address: u32, port: u32) {
        const NFT_NAT_DNAT: u32 = 1;
        expression(rule, "nat", |data| {
            data.number_be(1, NFT_NAT_DNAT)
                .number_be(2, u32::from(super::NFPROTO_IPV4))
                .number_be(3, address)
                .number_be(5, port);
        });
    }

    /// Gives the packet the address of the interface it leaves through.
    pub(crate) fn masquerade(rule: &mut Request) {
        expression(rule, "masq", |_| ());
    }

    pub(crate) fn drop_packet(rule: &mut Request) {
        const NF_DROP: u32 = 0;
        verdict(rule, |nest| {
            nest.number_be(1, NF_DROP);
        });
    }

    pub(crate) fn jump(rule: &mut Request, chain: &str) {
        const NFT_JUMP: i32 = -3;
        verdict(rule, |nest| {
            nest.attribute(1, &NFT_JUMP.to_be_bytes()).string(2, chain);
        });
    }

    fn verdict(rule: &mut Request, code: impl FnOnce(&mut Request)) {
        const NFT_REG_VERDICT: u32 = 0;
        expression(rule, "immediate", |data| {
            data.number_be(1, NFT_REG_VERDICT).nest(2, |nest| {
                nest.nest(2, code);
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_survives_its_encoding_and_damage_is_harmless() {
        let data = user_data("sandbox-1");
        assert_eq!(data, b"\0\x0asandbox-1\0");
        assert_eq!(comment(&data), "sandbox-1");
        assert_eq!(comment(&[1, 2, b'x', 0]), "", "another type of user data");
        assert_eq!(comment(&[0, 200, b'x']), "x");
        assert_eq!(comment(&[0]), "");
    }

    #[test]
    fn concatenated_types_are_numbered_as_nft_does() {
        let types = [DataType::Ipv4Address, DataType::InetProtocol, DataType::InetService];
        assert_eq!(concatenated(&types), (7 << 12 | 12 << 6 | 13, 12));
    }
}
