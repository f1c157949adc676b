// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"maps"
	"slices"
)

// weakenings are the flags, of any command, that give up a protection, and what is given up.
// docs/security.md lists them, and a test keeps that list complete.
func weakenings() map[string]string {
	return map[string]string{
		"insecure-registry":                           "images of these registries come in plain HTTP: whoever is on the way may replace those that are not named by digest, and read pull secrets",
		"self-signed-serving-certificate":             "nobody can tell this node's kubelet API from another's: logs, exec and what they carry may go to whoever answers at its address",
		"allow-host-path":                             "pods that name these folders get a copy of what is in them",
		"no-taint":                                    "pods that were not meant for machines are scheduled to this node",
		"discovery-token-unsafe-skip-ca-verification": "whoever answers for the server and has the token may pose as the cluster",
		"token":                "the token is seen by whoever lists the processes of this host: --token-file keeps it",
		"force":                "machines of pods go on with nobody to look after them",
		"metrics-address":      "names of pods and pools are served in plain HTTP to who reaches the address; a node takes loopback only",
		"health-probe-address": "whether the controller is well is served in plain HTTP to who reaches the address",
		"kubeconfig":           "an identity of a file is not renewed and is as good as the file is kept",
		"bootstrap-kubeconfig": "the file may ask for the certificate of any node that is not known yet",
		"approve-certificates": "who has a bootstrap token gets a node's certificate without anybody looking",
		"skip-boot":            "doctor does not find out whether this host can run the guest kit",
		"leader-elect":         "without it two controllers may give out the same targets",
	}
}

// weakened are the weakenings that these options use.
func (o *nodeOptions) weakened() map[string]string {
	used := map[string]bool{
		"insecure-registry":               len(o.InsecureRegistries) > 0,
		"self-signed-serving-certificate": o.SelfSigned,
		"allow-host-path":                 len(o.HostPaths) > 0,
		"no-taint":                        o.NoTaint,
	}
	all := weakenings()
	maps.DeleteFunc(all, func(flag, _ string) bool { return !used[flag] })
	return all
}

// warnWeakened tells whoever reads the log what this node was told to give up.
func (o *nodeOptions) warnWeakened(log *slog.Logger) {
	all := o.weakened()
	for _, flag := range slices.Sorted(maps.Keys(all)) {
		log.Warn("A flag weakens this node", "flag", "--"+flag, "givesUp", all[flag])
	}
}
