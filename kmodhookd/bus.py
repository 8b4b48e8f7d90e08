# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection to the bus: the one importer of pydbus, with every remedy for its known faults.

What pydbus does by itself and we do not let it: it answers before anything else may happen (here a reply may come later),
asks polkit synchronously and without a time limit (here: asynchronously, 120 s), names errors after Python classes and
sends their texts to the caller (here: one closed table), logs a traceback per bad call (here: one debug line per sender
and minute), lets others take the name, and leaks each call on some versions of PyGObject (see `LEAKY`).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import pydbus
from gi.repository import Gio, GLib
from pydbus import generic
from pydbus.registration import ObjectRegistration, ObjectWrapper

from kmodhookd.errors import BUS_ERRORS, AccessDenied, Fault, Internal, InvalidArgument, Unreachable, from_bus
from kmodhookd.guard import guarded
from kmodhookd.quota import Quota

Variant = GLib.Variant  # for those who call
DBUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
POLKIT = ("org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority")
PROPERTIES = "org.freedesktop.DBus.Properties"
POLKIT_TIMEOUT = 120_000  # milliseconds: a person may be typing a password
CALL_TIMEOUT = 25_000  # milliseconds, as libdbus and sd-bus have it
SIZE_LIMIT = 64 << 10  # bytes of one call's arguments
DEFERRED = object()  # a handler returns this when it will answer through `Call.reply` later

# GDBus hands an invocation over for good, and bindings that take the plain C function never drop that reference: about
# 2 kB per call. Bindings that override the function in Python do drop it, and there a second unref would be a
# use-after-free; so this asks exactly that question.
LEAKY = not isinstance(Gio.DBusConnection.register_object, FunctionType)

# An invalid name would leave the caller without any reply.
assert all(Gio.dbus_is_interface_name(error.bus_name) for error in BUS_ERRORS)

# Clients import this module too, and the logger of log.py is slow to import; what is logged here ends up there.
LOG = logging.getLogger("kmodhookd.bus")
logging.getLogger("pydbus.registration").disabled = True


@dataclass
class Call:
    """One call of a method of ours, until it is answered (once; further answers are dropped)."""

    invocation: Any
    sender: str
    member: str
    signature: str  # of the reply, as a tuple
    uid: int = -1  # of the caller; known to privileged methods only
    answered: bool = False

    @property
    def interactive(self) -> bool:
        """Whether the caller wants a person to be asked for a password."""
        flags = self.invocation.get_message().get_flags()
        return bool(flags & Gio.DBusMessageFlags.ALLOW_INTERACTIVE_AUTHORIZATION)

    def reply(self, value: Any) -> None:
        """Answer with a prebuilt tuple variant, or with a Python tuple that fits the signature."""
        try:
            variant = value if isinstance(value, GLib.Variant) else GLib.Variant(self.signature, value)
        except (TypeError, ValueError, OverflowError) as error:
            LOG.error("a reply of %s does not fit its signature: %s", self.member, error)
            self.fail(Internal("an internal error; the journal of kmodhookd has it"))
            return
        if variant.get_type_string() != self.signature:  # GDBus would send nothing at all
            LOG.error("a reply of %s has the wrong type %s", self.member, variant.get_type_string())
            self.fail(Internal("an internal error; the journal of kmodhookd has it"))
            return
        self._finish(lambda: self.invocation.return_value(variant))

    def fail(self, fault: Fault) -> None:
        """Answer with an error from the table."""
        name = fault.bus_name if type(fault) in BUS_ERRORS else Fault.bus_name
        text = str(fault).replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
        self._finish(lambda: self.invocation.return_dbus_error(name, text))

    def _finish(self, answer: Callable[[], object]) -> None:
        if self.answered:
            return
        self.answered = True
        answer()
        if LEAKY:
            self.invocation._unref()


Heard = Callable[[str, str, tuple[Any, ...]], None]
Handler = Callable[..., Any]  # (call, *arguments) → tuple, tuple variant, or DEFERRED; raises Fault


@dataclass(frozen=True)
class Method:
    """How a method is served. `action` is the polkit action that others than root need; "" = free."""

    handler: Handler
    action: str = ""


class Dispatcher(ObjectWrapper):  # type: ignore[misc]
    """Serves one object: methods from a table, properties from a function that gives prebuilt values."""

    def __init__(
        self,
        connection: "Connection",
        interfaces: Sequence[Any],
        methods: Mapping[str, Method],
        properties: Callable[[], Mapping[str, GLib.Variant]],
    ) -> None:
        members = {signal.name for interface in interfaces for signal in interface.signals} | {"PropertiesChanged"}
        emitter = type("Emitter", (), {member: generic.signal() for member in members})()
        super().__init__(emitter, interfaces)
        self._emitter = emitter
        self._connection = connection
        self._interface = interfaces[0].name
        self._methods = methods
        self._properties = properties
        self._quota = Quota()
        missing = {method.name for interface in interfaces for method in interface.methods} ^ set(methods)
        if missing:
            raise LookupError(f"methods and introspection differ: {', '.join(sorted(missing))}")

    def emit(self, member: str, *values: Any) -> None:
        """Emit a signal of this object. Never raises: who emits cannot help it."""
        try:
            getattr(self._emitter, member).emit(*values)
        except Exception:  # values that do not fit, a closed connection: a defect, and never a reason to stop
            LOG.exception("the signal %s could not be sent", member)

    def properties_changed(self, changed: Mapping[str, GLib.Variant]) -> None:
        """Emit PropertiesChanged for values that are variants already."""
        # pydbus wraps each value in its own type, so it gets them unwrapped.
        self.emit("PropertiesChanged", self._interface, {name: value.unpack() for name, value in changed.items()}, [])

    def call_method(  # the signature is GDBus's
        self, _connection: Any, sender: str, _path: str, interface: str, member: str, parameters: Any, invocation: Any
    ) -> None:
        """Answer a call, at once or later, whatever happens."""
        outargs = self.outargs.get(f"{interface}.{member}", [])
        call = Call(invocation, sender or "", member, f"({''.join(outargs)})")
        try:
            if parameters.get_size() > SIZE_LIMIT:
                raise InvalidArgument(f"more than {SIZE_LIMIT} bytes of arguments")
            if interface == PROPERTIES:
                self._property(call, member, parameters.unpack())
                return
            method = self._methods[member]
            if method.action:
                self._authorise(call, method, parameters.unpack())
            else:
                self._run(call, method, parameters.unpack())
        except Fault as fault:
            self._refuse(call, fault)
        except Exception:  # the net: a caller always gets an answer, and never our internals
            self._defect(call)

    def _run(self, call: Call, method: Method, arguments: tuple[Any, ...]) -> None:
        try:
            result = method.handler(call, *arguments)
            if result is not DEFERRED:
                call.reply(() if result is None else result)
        except Fault as fault:
            self._refuse(call, fault)
        except Exception:  # as in call_method; this one also runs from the callbacks of an authorisation
            self._defect(call)

    def _refuse(self, call: Call, fault: Fault) -> None:
        self._quota.note(call.sender, call.member, str(fault))
        call.fail(fault)

    def _defect(self, call: Call) -> None:
        LOG.exception("defect while serving %s", call.member)
        call.fail(Internal("an internal error; the journal of kmodhookd has it"))

    def _property(self, call: Call, member: str, arguments: tuple[Any, ...]) -> None:
        # GDBus has checked that interface and property exist and may be read.
        values = self._properties()
        if member == "Get":
            call.signature = "(v)"
            call.reply(GLib.Variant.new_tuple(GLib.Variant.new_variant(values[arguments[1]])))
        elif member == "GetAll":
            call.signature = "(a{sv})"
            call.reply((dict(values) if arguments[0] == self._interface else {},))
        else:
            raise AccessDenied("no property can be set")

    # --- who may --------------------------------------------------------------------------------------------------

    def _authorise(self, call: Call, method: Method, arguments: tuple[Any, ...]) -> None:
        """Find out who calls, ask polkit if it is not root, then run. Nothing else waits meanwhile."""
        self._quota.begin(call.sender)

        def known(reply: Any, error: Fault | None) -> None:
            if error is None:
                self._quota.remember(call.sender, reply.unpack()[0])
                self._identified(call, method, arguments)
            else:
                self._quota.end(call.sender)
                call.fail(AccessDenied("the bus does not tell who is calling"))

        if self._quota.uid(call.sender) is not None:
            self._identified(call, method, arguments)
        else:
            who = GLib.Variant("(s)", (call.sender,))
            self._connection.call_async(*DBUS, "GetConnectionUnixUser", who, "(u)", known, timeout=CALL_TIMEOUT)

    def _identified(self, call: Call, method: Method, arguments: tuple[Any, ...]) -> None:
        uid = self._quota.uid(call.sender)
        call.uid = -1 if uid is None else uid
        if call.uid in (0, self._connection.own_uid):
            self._quota.end(call.sender)
            self._run(call, method, arguments)
            return
        try:
            self._quota.question(call.uid)
        except Fault as fault:
            self._quota.end(call.sender)
            self._refuse(call, fault)
        else:
            self._ask_polkit(call, method, arguments)

    def _ask_polkit(self, call: Call, method: Method, arguments: tuple[Any, ...]) -> None:
        subject = ("system-bus-name", {"name": GLib.Variant("s", call.sender)})
        question = GLib.Variant("((sa{sv})sa{ss}us)", (subject, method.action, {}, int(call.interactive), ""))

        def decided(reply: Any, error: Fault | None) -> None:
            self._quota.end(call.sender)
            if error is not None:
                hint = "use sudo, or see that polkit runs"
                self._refuse(call, AccessDenied(f"only root may call {call.member}: polkit does not answer", hint=hint))
            elif not reply.unpack()[0][0]:
                self._refuse(call, AccessDenied(f"you may not call {call.member}", hint="use sudo"))
            else:
                self._run(call, method, arguments)

        self._connection.call_async(
            *POLKIT, "CheckAuthorization", question, "((bba{ss}))", decided, timeout=POLKIT_TIMEOUT
        )


class Connection:
    """A connection to a message bus, for the daemon and for its clients."""

    def __init__(self, bus: Any, own_uid: int) -> None:
        self._bus = bus
        self._keep: list[Any] = []  # registrations and subscriptions live as long as the connection
        self.own_uid = own_uid

    def export(
        self,
        path: str,
        interface: Any,
        methods: Mapping[str, Method],
        properties: Callable[[], Mapping[str, GLib.Variant]] = dict,
    ) -> Dispatcher:
        """Register an object with one interface (see `interfaces`)."""
        dispatcher = Dispatcher(self, [interface], methods, properties)
        self._keep.append(ObjectRegistration(self._bus, path, [interface], dispatcher, own_wrapper=True))
        return dispatcher

    def own(self, name: str, on_lost: Callable[[], None]) -> None:
        """Take a name that nobody can take from us. Raises Unreachable when somebody has it."""

        def lost(_sender: str, member: str, _values: Any) -> None:
            if member == "NameLost":
                on_lost()

        self.subscribe(DBUS[2], DBUS[1], lost, sender=DBUS[0], arg0=name)
        try:
            self._keep.append(self._bus.request_name(name, allow_replacement=False, replace=False))
        except (RuntimeError, GLib.Error) as error:
            hint = "is another kmodhookd running, and does the bus policy org.kmodhookd1.conf let us have the name?"
            raise Unreachable(f"the name {name} is not to be had: {_sentence(error)}", hint=hint) from error

    def on_closed(self, callback: Callable[[], None]) -> None:
        """Be told when the bus is gone."""
        self._bus.con.connect("closed", guarded(lambda *_: callback(), None))

    def subscribe(
        self, interface: str, path: str, callback: Heard, *, sender: str = "", arg0: str | None = None
    ) -> None:
        """Hear signals: callback(sender, member, values). Without a sender only those that are addressed to us."""
        flags = Gio.DBusSignalFlags.NONE if sender else Gio.DBusSignalFlags.NO_MATCH_RULE

        def fired(origin: str, _path: str, _interface: str, member: str, values: Any) -> None:
            callback(origin, member, values)

        self._keep.append(self._bus.subscribe(sender or None, interface, None, path, arg0, flags, guarded(fired, None)))

    def call_async(
        self,
        name: str,
        path: str,
        interface: str,
        member: str,
        parameters: GLib.Variant | None,
        reply_type: str,
        done: Callable[[Any, Fault | None], None],
        *,
        timeout: int,
    ) -> None:
        """Call a method; `done(reply, None)` or `done(None, fault)` comes later. `timeout` in milliseconds."""

        def finished(connection: Any, result: Any) -> None:
            try:
                reply = connection.call_finish(result)
            except GLib.Error as error:
                done(None, Unreachable(_sentence(error)))
                return
            done(reply, None)

        expected = GLib.VariantType(reply_type)
        flags = Gio.DBusCallFlags.NONE
        self._bus.con.call(
            name, path, interface, member, parameters, expected, flags, timeout, None, guarded(finished, None)
        )

    def call(
        self,
        name: str,
        path: str,
        interface: str,
        member: str,
        parameters: GLib.Variant | None = None,
        *,
        timeout: int = CALL_TIMEOUT,
        interactive: bool = False,
    ) -> Any:
        """Call a method and wait for the answer, which comes unpacked. For clients; the daemon never waits.

        Raises the class of errors.py that the error's name says, Unreachable when nobody answers.
        """
        flags = Gio.DBusCallFlags.NONE
        if interactive:
            flags |= Gio.DBusCallFlags.ALLOW_INTERACTIVE_AUTHORIZATION
        try:
            reply = self._bus.con.call_sync(name, path, interface, member, parameters, None, flags, timeout, None)
        except GLib.Error as error:
            raise _fault(error) from None
        return reply.unpack()

    def send_signal(self, destination: str, path: str, interface: str, member: str, values: GLib.Variant) -> None:
        """Send a signal to one name (which starts it where it is activatable) and see it off."""
        try:
            self._bus.con.emit_signal(destination, path, interface, member, values)
            self._bus.con.flush_sync(None)
        except GLib.Error as error:
            raise _fault(error) from None

    def close(self) -> None:
        """Give the name back and hang up."""
        try:
            self._bus.con.flush_sync(None)
            self._bus.con.close_sync(None)
        except GLib.Error as error:
            LOG.debug("the connection did not close well: %s", _sentence(error))


def connect(address: str, own_uid: int) -> Connection:
    """Connect to `system`, `session` or a D-Bus address. Raises Unreachable."""
    try:
        if address in ("system", "session"):
            kind = Gio.BusType.SYSTEM if address == "system" else Gio.BusType.SESSION
            address = Gio.dbus_address_get_for_bus_sync(kind, None)
        # A connection of our own, not the shared one of the process: that one ends the process when the bus goes.
        bus = pydbus.connect(address)
    except (GLib.Error, TypeError) as error:
        raise Unreachable(f"there is no bus: {_sentence(error)}", where=address) from error
    bus.con.set_exit_on_close(False)
    bus.con._ref()  # never freed: Python's lock is held meanwhile, and GDBus's thread, which is waited for, wants it
    return Connection(bus, own_uid)


def interfaces(xml: str) -> dict[str, Any]:
    """The interfaces of an introspection text, nested nodes included, by name."""
    found: dict[str, Any] = {}
    nodes = [Gio.DBusNodeInfo.new_for_xml(xml)]
    while nodes:
        node = nodes.pop()
        nodes += node.nodes
        found |= {interface.name: interface for interface in node.interfaces}
    return found


def _sentence(error: Exception) -> str:
    """What a GLib error says, without the names around it."""
    text = error.message if isinstance(error, GLib.Error) else str(error)
    return str(text).removeprefix("GDBus.Error:")


def _fault(error: GLib.Error) -> Fault:
    """The class of ours that a remote error's name says."""
    remote = Gio.DBusError.get_remote_error(error) or ""
    Gio.DBusError.strip_remote_error(error)
    return from_bus(remote, _sentence(error))
