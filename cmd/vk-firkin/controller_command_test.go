// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/warmpool/controller/approver"
)

func TestControllerOptions(t *testing.T) {
	for _, test := range []struct {
		args []string
		want []string // parts of the error; none is none
	}{
		{nil, nil},
		{[]string{"--leader-elect=false", "--leader-elect-namespace="}, []string{"--leader-elect-namespace"}}, // who joined is remembered there
		{[]string{"--leader-elect=false", "--leader-elect-namespace=", "--approve-certificates=false"}, nil},
		{[]string{"--health-probe-address=", "--metrics-address="}, nil},
		{[]string{"--leader-elect-namespace=A B", "--node-fill-limit=0", "--node-grace-period=-1s"}, []string{"--leader-elect-namespace", "--node-fill-limit", "--node-grace-period"}},
		{[]string{"--metrics-address=8080", "--log-level=loud"}, []string{"--metrics-address", "--log-level"}},
		{[]string{"--node-networks=192.0.2.0/24,2001:db8::/32", "--join-group=system:bootstrappers:mine"}, nil},
		{[]string{"--approve-certificates=false", "--join-group=x"}, nil},
		{[]string{"--node-networks=192.0.2.1"}, []string{"--node-networks"}},
		{[]string{"--join-group=system:masters"}, []string{"--join-group"}},
		{[]string{"--leader-elect-lease-duration=1s"}, []string{"--leader-elect-lease-duration"}},
	} {
		var o controllerOptions
		cmd := newControllerCommand()
		cmd.ResetFlags()
		o.addFlags(cmd.Flags())
		if err := cmd.Flags().Parse(test.args); err != nil {
			t.Fatal(err)
		}
		if test.args == nil && o.LeaseDuration != 15*time.Second { // docs/recovery.md tells it
			t.Errorf("the lease is %s by default", o.LeaseDuration)
		}
		_, err := o.complete()
		if err == nil && len(test.want) > 0 || err != nil && len(test.want) == 0 {
			t.Errorf("%v: %v", test.args, err)
		}
		for _, part := range test.want {
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("%v: %v does not name %s", test.args, err, part)
			}
		}
	}
}

// The address that the controller itself reaches the API server at is no node's.
func TestReserve(t *testing.T) {
	for server, want := range map[string]string{
		"https://10.96.0.1:443": "[10.96.0.1] []", "https://[2001:db8::1]:6443": "[2001:db8::1] []", "https://api.example.test": "[] [api.example.test]", "": "[] []",
	} {
		p := &approver.Policy{}
		p.Reserve(server)
		if got := fmt.Sprint(p.Reserved, p.ReservedNames); got != want {
			t.Errorf("%s: reserved %s, want %s", server, got, want)
		}
	}
}
