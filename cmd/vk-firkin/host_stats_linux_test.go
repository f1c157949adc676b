// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/provider/stats"
)

func TestParseHost(t *testing.T) {
	var h stats.Host
	for _, err := range []error{
		parseStat(&h, "cpu  100 20 30 9000 50 6 7 1000 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\nbtime 1700000000\n"),
		parseVMStat(&h, "nr_free_pages 1\npgfault 70\npgmajfault 7\n"),
		parseNetDev(&h, "head|\n head|\n    lo: 7 7 7 0 0 0 0 0 7 7 7 0 0 0 0 0\n  br0: 1 10 0 0 0 0 0 0 2 20 0 0 0 0 0 0\n  eth0:5 1 3 0 0 0 0 0 6 1 4 0 0 0 0 0\n"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	defaultFirst(&h, "Iface\tDestination\tGateway\nbr0\t0002A8C0\t0\neth0\t00000000\t0102A8C0\n")
	if h.CPUTime != 1630*time.Millisecond || h.BootTime.Unix() != 1700000000 || h.PageFaults != 70 || h.MajorPageFaults != 7 {
		t.Errorf("%+v", h)
	}
	if want := (stats.Interface{Name: "eth0", RxBytes: 5, RxErrors: 3, TxBytes: 6, TxErrors: 4}); len(h.Network) != 2 || h.Network[0] != want {
		t.Errorf("network is %+v", h.Network)
	}
	if err := hostUsage(&stats.Host{MemoryTotalBytes: 1 << 40}); err != nil {
		t.Errorf("on this host: %v", err)
	}
}
