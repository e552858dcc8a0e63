"""One node of a BitTorrent swarm by libtorrent, with the settings that it comes with.

make FILE TORRENT            writes the torrent of a file
serve TORRENT FOLDER ADDRESS GO MARK [PEER...]
    waits for the file GO, then takes part; makes the file MARK as soon as everything is there, and goes on giving.
"""
import os
import sys
import time

import libtorrent as lt


def make(path, torrent):
    files = lt.file_storage()
    lt.add_files(files, path)
    made = lt.create_torrent(files)
    lt.set_piece_hashes(made, os.path.dirname(path))
    with open(torrent, "wb") as out:
        out.write(lt.bencode(made.generate()))


def serve(torrent, folder, address, go, mark, *peers):
    # No strangers: nobody is looked for outside of the swarm.
    session = lt.session({
        "listen_interfaces": address,
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
    })
    wanted = lt.add_torrent_params()
    wanted.ti = lt.torrent_info(torrent)
    wanted.save_path = folder
    while not os.path.exists(go):
        time.sleep(0.002)
    handle = session.add_torrent(wanted)
    handle.unset_flags(lt.torrent_flags.auto_managed)
    handle.resume()
    told, again = False, 0
    while True:
        now = time.monotonic()
        status = handle.status()
        if not told and status.is_seeding:
            told = True
            open(mark, "w").close()
        if now >= again and status.num_peers < len(peers):
            again = now + 1
            for peer in peers:
                host, port = peer.rsplit(":", 1)
                handle.connect_peer((host, int(port)))
        time.sleep(0.005)


{"make": make, "serve": serve}[sys.argv[1]](*sys.argv[2:])
