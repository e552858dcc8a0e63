[flotilla-agent]
title="Flotilla"
desc="Flotilla, between agents"
port_forward="yes"
dst.ports="7702/udp"
