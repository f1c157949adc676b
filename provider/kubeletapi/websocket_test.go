// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kubeletapi_test

import (
	"encoding/base64"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/rest"
)

// TestWebSocketProtocols: the kubelet's protocols, spoken as a browser does. Those of
// version 1 have no status but a message of what failed, and none at all means version 1.
func TestWebSocketProtocols(t *testing.T) {
	s := newServer(t)
	s.runPod(t)
	tlsConfig, err := rest.TLSConfigFor(s.config(t, "api", ""))
	if err != nil {
		t.Fatal(err)
	}
	tlsConfig.NextProtos = []string{"http/1.1"}
	dial := func(protocol string, command ...string) (map[byte]string, error) {
		q := url.Values{"command": command, "input": {"1"}, "output": {"1"}, "error": {"1"}}
		config, err := websocket.NewConfig(strings.Replace(s.url, "https:", "wss:", 1)+"/exec/ns/p/c?"+q.Encode(), "http://localhost")
		if err != nil {
			t.Fatal(err)
		}
		config.TlsConfig = tlsConfig
		if protocol != "" {
			config.Protocol = []string{protocol}
		}
		conn, err := websocket.DialConfig(config)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		got := map[byte]string{}
		for {
			var data []byte
			if err := websocket.Message.Receive(conn, &data); errors.Is(err, io.EOF) {
				return got, nil
			} else if err != nil {
				return got, err
			}
			if len(data) == 0 {
				continue
			}
			channel, data := data[0], data[1:]
			if strings.Contains(protocol, "base64") {
				if channel -= '0'; len(data) > 0 {
					if data, err = base64.StdEncoding.DecodeString(string(data)); err != nil {
						return got, err
					}
				}
			}
			got[channel] += string(data)
		}
	}
	for protocol, status := range map[string]bool{"": false, "channel.k8s.io": false, "base64.channel.k8s.io": false,
		"v4.channel.k8s.io": true, "v4.base64.channel.k8s.io": true, "v5.channel.k8s.io": true} {
		got, err := dial(protocol, "do", "echo out", "warn err")
		if err != nil || got[1] != "out\n" || got[2] != "err\n" || status != strings.Contains(got[3], `"Success"`) || !status && got[3] != "" {
			t.Errorf("%q: %q, %v", protocol, got, err)
		}
		got, err = dial(protocol, "exit", "3")
		if err != nil || !strings.Contains(got[3], "exit code 3") || status != strings.Contains(got[3], `"NonZeroExitCode"`) {
			t.Errorf("%q: of a failure %q, %v", protocol, got, err)
		}
	}
	if _, err := dial("v6.channel.k8s.io", "echo"); err == nil {
		t.Error("a protocol that is not there is spoken")
	}
}
