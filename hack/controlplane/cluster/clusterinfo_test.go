// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

// cluster-info is made, or replaced when it is there: the server may have moved.
func TestPublishClusterInfo(t *testing.T) {
	for name, answer := range map[string]int{"at first": http.StatusCreated, "again": http.StatusConflict} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var asked []string // guarded by mu
			var info string    // guarded by mu
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, r.Method+" "+r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
				if r.Method == http.MethodPut {
					var object struct{ Data map[string]string }
					_ = json.NewDecoder(r.Body).Decode(&object)
					info = object.Data["kubeconfig"]
					return
				}
				w.WriteHeader(answer)
			}))
			t.Cleanup(s.Close)
			a := &apiClient{server: s.URL, http: s.Client()}
			if err := a.publishClusterInfo(t.Context(), []byte("authority")); err != nil {
				t.Fatal(err)
			}
			slices.Sort(asked)
			if want := []string{"POST configmaps", "POST rolebindings", "POST roles", "PUT cluster-info"}; !slices.Equal(asked, want) {
				t.Errorf("asked %q, want %q", asked, want)
			}
			if !strings.Contains(info, s.URL) || !strings.Contains(info, base64.StdEncoding.EncodeToString([]byte("authority"))) {
				t.Errorf("cluster-info is %q", info)
			}
		})
	}
}
